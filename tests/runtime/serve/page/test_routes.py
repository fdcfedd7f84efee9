"""The files of the page over HTTP, and what can be told of them without a browser."""

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from tests.support.numpy_engines import Journal, numpy_pipeline
from tests.support.report_page import Page
from tests.support.served import Served, served

FILES = {
    file.name: file.read_text(encoding="utf-8")
    for file in files("qwen_image_engine.runtime.serve.page").iterdir()
    if file.name.endswith((".html", ".css", ".js"))
}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
HTML = FILES["index.html"]


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Served]:
    with served(numpy_pipeline(checkpoint, Journal())) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "media_type"),
    [("/", "text/html"), ("/page/page.css", "text/css"), *((f"/page/{name}", "text/javascript") for name in SCRIPTS)],
)
def test_each_file_is_sent_with_a_strict_policy(server: Served, path: str, media_type: str) -> None:
    with server.client() as client:
        reply = client.get(path)
        assert reply.status_code == 200
        assert reply.text == FILES[path.rpartition("/")[2] or "index.html"]
        assert reply.headers["content-type"] == f"{media_type}; charset=utf-8"
        policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self' blob: data:",
            "connect-src": "'self'",
            "frame-ancestors": "'none'",
            "base-uri": "'none'",
            "form-action": "'none'",
        }
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        again = client.get(path, headers={"If-None-Match": reply.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["routes.py", "__init__.py", "..%2Fapp.py", "%2e%2e%2fapp.py", "nothing.js", ""])
def test_nothing_else_is(server: Served, name: str) -> None:
    with server.client() as client:
        reply = client.get(f"/page/{name}")
        assert reply.status_code in (307, 404)
        assert "import" not in reply.text


def test_the_page_is_sound() -> None:
    page = Page(HTML)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for name, attributes in page.tags:
        assert not any(key.startswith("on") or key == "style" for key in attributes)
        assert name != "style"
        for key in ("for", "aria-labelledby", "aria-describedby"):
            assert attributes.get(key, ids[0]) in ids
        for key in ("src", "href"):
            value = attributes.get(key) or "/"
            assert value == "data:," or value.removeprefix("/page/") in FILES or value == "/"
    assert [item["type"] for item in page.named("script")] == ["module"]
    assert page.named("html")[0]["lang"] == "en"
    labelled = {item.get("for") for item in page.named("label")}
    for item in (*page.named("input"), *page.named("select"), *page.named("textarea")):
        inside = item.get("type") in ("radio", "range")
        assert inside or "hidden" in item or item["id"] in labelled or "aria-labelledby" in item
    assert all("type" in item for item in page.named("button"))


def test_the_scripts_make_no_markup_and_ask_nobody_else() -> None:
    known = set(re.findall(r'\bid="([^"]+)"', HTML))
    for text in SCRIPTS.values():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", text)
        assert not re.search(r"https?:|localStorage|cookie", text)
        assert set(re.findall(r'(?:\$|\bon)\("([a-z_-]+)"', text)) <= known
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= set(SCRIPTS)
    assert "url(" not in FILES["page.css"]
    assert "@import" not in FILES["page.css"]
