"""How the page looks and how it is used without a mouse: light and dark, narrow, and by keyboard alone."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.chromium import Browser
from tests.support.numpy_engines import Journal, numpy_pipeline
from tests.support.served import Served, served
from tests.support.served_page import Tab, alpha

pytestmark = pytest.mark.process

LONG = "a_very_long_name_" * 12
STATES = ("start", "picture", "fault", "mask")


@pytest.fixture(scope="module")
def kept_server(checkpoint: Path) -> Iterator[Served]:
    """One server for tests that only look."""
    with served(numpy_pipeline(checkpoint, Journal())) as found:
        yield found


@pytest.fixture
def show(chromium: Browser, kept_server: Served, cat: Path) -> Callable[..., None]:
    """`show(state, width, scheme)`: the page in a state.

    Where the test before has left it so in this width, the scheme alone is changed.
    """

    def bring(state: str, width: int = 1200, scheme: str = "light") -> None:
        tab = Tab(chromium, kept_server)
        mark = f"{kept_server.url} {state} {width}"
        if chromium.run("window.shown") == mark:
            chromium.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            return
        tab.open(width, scheme)
        enter(tab, state, cat)
        chromium.run(f"window.shown = {json.dumps(mark)}")

    return bring


def enter(tab: Tab, state: str, cat: Path) -> None:
    """Bring the page, which was just opened, into a state."""
    tab.chromium.run("document.querySelector('#more').open = true")
    if state == "picture":
        tab.chromium.drop("body", cat.rename(cat.with_name(f"{LONG}.png")))
        tab.chromium.until("document.querySelectorAll('#images li').length === 1")
        tab.draw(prompt=LONG)
        tab.wait(1)
    if state == "fault":
        tab.draw(size="100x100", prompt=LONG)
        tab.fault()
    if state == "mask":
        tab.chromium.drop("body", cat)
        tab.chromium.until("document.querySelectorAll('#images li').length === 1")
        tab.chromium.click("#open-mask")
        tab.chromium.run("document.querySelector('#mask details').open = true")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("width", [360, 320])
def test_no_sideways_scroll_on_a_phone(chromium: Browser, show: Callable[..., None], width: int, state: str) -> None:
    show(state, width)
    assert chromium.run("document.documentElement.scrollWidth") <= width
    widest = "Math.max(...[...document.querySelectorAll('body *')].filter(e => e.checkVisibility())"
    assert chromium.run(f"{widest}.map(e => e.getBoundingClientRect().right))") <= width


def test_fields_do_not_make_a_phone_zoom(tab: Tab) -> None:
    fields = "[...document.querySelectorAll('input, select, textarea')]"
    assert min(tab.chromium.run(f"{fields}.map(e => parseFloat(getComputedStyle(e).fontSize))")) >= 16


def test_light_and_dark(chromium: Browser, kept_server: Served, tmp_path: Path) -> None:
    tab = Tab(chromium, kept_server)
    shots = {}
    for scheme in ("light", "dark"):
        tab.open(scheme=scheme)
        chromium.screenshot(tmp_path / "page.png")
        shots[scheme] = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
        tab.check_quiet()
    assert shots["light"].mean() > 200
    assert shots["dark"].mean() < 60


CONTRAST = """
(() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = rgb => rgb.slice(0, 3).map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = e => { const c = channels(getComputedStyle(e).backgroundColor);
    return c.length === 4 && c[3] === 0 ? (e.parentElement ? ground(e.parentElement) : [255, 255, 255]) : c; };
  const shown = [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.disabled &&
    [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
  return shown.map(e => { const [a, b] = [light(channels(getComputedStyle(e).color)), light(ground(e))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 80)]; })
    .filter(([ratio]) => ratio < 4.5);
})()
"""
"""Texts whose contrast is below 4.5, which is WCAG 2.2's bound 1.4.3, computed by its formula."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES)
def test_texts_can_be_read(chromium: Browser, show: Callable[..., None], scheme: str, state: str) -> None:
    show(state, scheme=scheme)
    assert chromium.run(CONTRAST) == []


@pytest.mark.parametrize("state", STATES)
def test_every_control_has_a_name(chromium: Browser, show: Callable[..., None], state: str) -> None:
    """By the browser's own tree of what a screen reader is told."""
    show(state)
    roles = {"button", "textbox", "combobox", "spinbutton", "link", "radio", "slider", "progressbar", "dialog", "image"}
    nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[Any]] = {}
    for node in nodes:
        role = node.get("role", {}).get("value")
        if role in roles and not node["ignored"]:
            named.setdefault(role, []).append(node.get("name", {}).get("value"))
    assert len(named["button"]) >= 2
    assert all(all(names) for names in named.values()), named


class TestKeyboard:
    def go_to(self, tab: Tab, name: str) -> None:
        """Press Tab until an element has the focus, which is visible wherever it comes."""
        for _ in range(60):
            tab.chromium.press("Tab")
            if tab.chromium.run("document.activeElement !== document.body"):
                assert tab.chromium.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
            if tab.focused() == name:
                return
        raise AssertionError(f"the focus never came to {name}")

    def test_draw_and_cancel(self, gate: Any, tab: Tab, received: list[dict[str, Any]]) -> None:
        tab.chromium.press("Tab")
        assert tab.focused() == "prompt"
        tab.chromium.type("a red circle")
        self.go_to(tab, "num_inference_steps")
        tab.chromium.type("4")
        self.go_to(tab, "draw")
        tab.chromium.press("Enter")
        tab.chromium.until("document.activeElement.id === 'cancel'")
        tab.chromium.press("Enter")
        tab.chromium.until("document.activeElement.id === 'draw'")
        assert tab.text("live") == "Cancelled."
        gate.open()
        tab.chromium.run(f"{tab.of('prompt')}.focus()")
        tab.chromium.press("Enter", modifiers=2)
        tab.wait(1)
        assert tab.focused() == "prompt"
        assert [item["num_inference_steps"] for item in received] == [4, 4]
        assert received[1]["prompt"] == "a red circle"
        for name in ("save", "as-image", "settings", "copy-json", "copy-curl", "clear"):
            self.go_to(tab, name)
        tab.chromium.press("Tab")
        tab.chromium.press("Enter")
        assert tab.chromium.run("document.activeElement.getAttribute('aria-current')") == "true"
        tab.check_quiet()

    def test_a_mask(self, tab: Tab, cat: Path, received: list[dict[str, Any]]) -> None:
        """By numbers. The file itself comes by the file button, whose window is the system's."""
        tab.chromium.drop("body", cat)
        tab.chromium.until("document.querySelectorAll('#images li').length === 1")
        self.go_to(tab, "open-mask")
        tab.chromium.press("Enter")
        tab.chromium.until(f"{tab.of('mask')}.open")
        self.go_to(tab, "Rectangle by numbers")
        tab.chromium.press("Enter")
        for name, value in (("rect-left", "10"), ("rect-top", "20"), ("rect-width", "30"), ("rect-height", "8")):
            self.go_to(tab, name)
            tab.chromium.run("document.activeElement.select()")
            tab.chromium.type(value)
        self.go_to(tab, "rect-fill")
        tab.chromium.press("Enter")
        tab.chromium.press("Escape")
        tab.chromium.until("document.activeElement.id === 'open-mask'")
        tab.draw(size="96x64")
        tab.wait(1)
        expected = np.full((64, 96), 255, np.uint8)
        expected[20:28, 10:40] = 0
        assert np.array_equal(alpha(received[0]["mask"][0][1]), expected)
        tab.check_quiet()
