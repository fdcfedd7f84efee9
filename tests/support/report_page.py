"""Checks of every report: parsed as HTML, and looked at by Chromium where there is one."""

from __future__ import annotations

from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

from tests.support.chromium import browser

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Tags with their attributes, text, headings and ids; balance is checked on the way."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def check_page(file: Path) -> Page:
    """Self-contained, without scripts, and sound; no browser needed."""
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    names = {name for name, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "base", "form", "foreignobject"}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "srcset", "data", "poster", "background"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), value
            if value.startswith("#") and len(value) > 1:
                assert value[1:] in ids
    assert "@import" not in text
    assert "http:" not in text
    assert "https:" not in text
    for part in text.split("url(")[1:]:
        assert part.startswith("#")
        assert part[1:].partition(")")[0] in ids
    assert page.named("html")[0]["lang"] == "en"
    assert page.tags[2] == ("meta", {"charset": "utf-8"})
    assert any(item.get("name") == "viewport" for item in page.named("meta"))
    assert "(prefers-color-scheme: dark)" in text
    levels = [int(name[1]) for name, _ in page.tags if name in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all("alt" in item for item in page.named("img"))
    assert all(item.get("aria-label") and item.get("role") == "img" for item in page.named("svg"))
    return page


def check_in_browser(file: Path, folder: Path) -> None:
    """Renders light and dark, on a desk and on a phone: no message, no request but for the page, no sideways scroll."""
    grounds = {}
    with browser(folder) as chromium:
        for width in (1200, 375, 320):
            for scheme in ("light", "dark"):
                chromium.look(file.as_uri(), width, scheme)
                assert chromium.value("document.querySelectorAll('svg.plot').length") > 0
                assert chromium.value("document.documentElement.scrollWidth") <= width
                assert chromium.value("Math.max(...[...document.images].map(i => i.naturalWidth ? 0 : 1), 0)") == 0
                grounds[scheme] = chromium.value("getComputedStyle(document.body).backgroundColor")
                assert chromium.told() == []
                assert [url for url in chromium.asked() if not url.startswith("data:")] == [file.as_uri()]
    assert grounds["light"] != grounds["dark"]
