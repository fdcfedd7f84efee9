"""The parts of every report: the page, verdicts, legends, the environment and the commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

from qwen_image_engine.runtime.system.text import size_text
from qwen_image_engine.runtime.tools.report.html import Content, Html, join, table, tag
from qwen_image_engine.runtime.tools.report.style import STYLE

GENERATOR = "qwen-image-engine report"
"""Value of the page's `meta` element "generator". It distinguishes a report from another file of the same name."""


def page(title: str, command: str, lead: Content, *content: Content) -> str:
    """Return the whole HTML document. `command` is the command that wrote it."""
    name = f"{title} - {command}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="generator", content=GENERATOR),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        # Whatever a browser finds in it, it fetches nothing and runs nothing.
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", name),
        tag("link", rel="icon", href="data:,"),
        Html(f"<style>{STYLE}</style>"),
    )
    top = tag("header", tag("p", command, class_="kind"), tag("h1", title), tag("p", lead, class_="lead"))
    body = tag("body", top, tag("main", content))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en').markup}\n"


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def section(title: str, *content: Content) -> Html:
    """Return a section with its heading."""
    return tag("section", tag("h2", title), content)


def verdict(mark: str, title: Content, *details: Content) -> Html:
    """Return the box of a verdict.

    Args:
        mark: "good", "bad" or "unclear".
        title: the verdict in a sentence.
        details: paragraphs, or elements such as the result of `more`.
    """
    shown = [item if isinstance(item, Html) else tag("p", item) for item in details]
    return tag("div", tag("strong", title), shown, class_=f"verdict {mark}")


def marked(mark: str, text: str) -> Html:
    """Return a text in the colour of a verdict."""
    return tag("span", text, class_=f"mark-{mark}")


def facts(items: Mapping[str, str]) -> Html:
    """Return a list of emphasised figures. `items` has their texts by name."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in items.items()], class_="facts")


def legend(items: Iterable[tuple[str, int | str, bool]]) -> Html:
    """Return a legend. Each item is its label, the number or name of its colour, and whether its line is dashed."""

    def key(colour: int | str, dashed: bool) -> Html:
        name = f"series-{colour % 8}" if isinstance(colour, int) else colour
        line = "key dashed" if dashed else "key"
        return tag("span", class_=line, style=f"border-color: var(--{name})")

    return tag("div", [tag("span", key(colour, dashed), label) for label, colour, dashed in items], class_="legend")


def plots(panels: Sequence[Html], *caption: Content, keys: Html | str = "") -> Html:
    """Return a figure of panels beside each other, as many as fit, with one legend and one caption."""
    return tag("figure", keys, tag("div", panels, class_="plots"), tag("figcaption", caption))


def more(summary: str, *content: Content) -> Html:
    """Return folded content for the few readers who need it. `summary` is the visible line."""
    return tag("details", tag("summary", summary), content)


def listed(lines: Iterable[Content]) -> Html:
    """Return a bulleted list of the lines."""
    return tag("ul", [tag("li", line) for line in lines])


def environment(found: Mapping[str, Any], rows: Sequence[tuple[str, str]] = ()) -> Html:
    """Return the section with `rows`, the machine, versions of packages, and the time of the run."""
    lines = list(rows)
    machine = found.get("machine") or {}
    flags = machine.get("cpu_flags")
    for name, label in (("cpu", "processor"), ("cores", "cores"), ("system", "system"), ("python", "Python")):
        if machine.get(name) is not None:
            lines.append((label, str(machine[name])))
    for name, label in (("memory_bytes", "memory"), ("free_memory_bytes", "free memory at the end")):
        if machine.get(name) is not None:
            lines.append((label, size_text(machine[name])))
    if flags is not None:
        lines.append(("instructions", ", ".join(name for name, has in flags.items() if has) or "none of interest"))
    lines += [(name, value) for name, value in (found.get("versions") or {}).items() if value is not None]
    if found.get("began"):
        lines.append(("began", str(found["began"])))
    lines.append(("report", f"qwen-image-engine {version('qwen-image-engine')}"))
    cells = ((name, tag("span", value, class_="any")) for name, value in lines)
    return section("Environment", table(("what", "value"), cells))


def short_names(folders: Sequence[str]) -> list[str]:
    """Return the names of the folders without their parents, or the full paths if two names are equal."""
    names = [PurePath(folder).name or folder for folder in folders]
    return names if len(set(names)) == len(names) else list(folders)


def commands(*lines: str) -> Html:
    """Return the section with the commands that repeat the result."""
    shown = [line for line in lines if line]
    if not shown:
        return join("")
    return section("Commands", tag("p", "The same again:", class_="note"), tag("pre", tag("code", "\n".join(shown))))
