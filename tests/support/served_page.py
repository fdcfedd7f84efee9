"""The page of a server in a browser's tab, as its users meet it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.chromium import Browser
from tests.support.served import Served, until

SMALL = {"prompt": "a red circle", "size": "64x96", "num_inference_steps": 4, "seed": 5}
FOCUSED = "(document.activeElement.id || document.activeElement.name || document.activeElement.textContent)"


class Tab:
    """A browser's tab with the page.

    Attributes:
        chromium: the browser.
        server: the server of the page.
    """

    def __init__(self, chromium: Browser, server: Served) -> None:
        self.chromium = chromium
        self.server = server

    def open(self, width: int = 1200, scheme: str = "light", models: bool = True) -> None:
        """Open the page, and wait until it has asked for the models unless there is a key."""
        self.chromium.look(f"{self.server.url}/", width, scheme)
        if models:
            self.chromium.until("document.querySelector('#model').options.length > 0")

    def fill(self, **values: Any) -> None:
        """Type values into fields by their ids; those of another size than the list's are typed too."""
        width, _, height = str(values.get("size", "")).partition("x")
        if height:
            values |= {"size": "other", "width": width, "height": height}
        for name, value in values.items():
            text = json.dumps(value)
            chosen = f"e.value = {text}; e.dispatchEvent(new Event('change', {{bubbles: true}}))"
            unfold = "const part = e.closest('details'); if (part) part.open = true;"
            fill = f"if (e.tagName === 'SELECT') {{ {chosen} }} else {{ e.focus(); e.select(); }} return e.tagName;"
            if self.chromium.run(f"(e => {{ {unfold} {fill} }})({self.of(name)})") != "SELECT":
                self.chromium.type(str(value))

    def draw(self, **values: Any) -> None:
        """Fill the form in and draw, without waiting."""
        self.fill(**{**SMALL, **values})
        self.chromium.click("#draw")

    def wait(self, pictures: int) -> None:
        """Wait until there are so many pictures in the history, and none in work."""
        length = f"document.querySelectorAll('#history li').length === {pictures}"
        self.chromium.until(f"!{self.of('draw')}.disabled && ({length} || !{self.of('fault')}.hidden)")
        assert self.text("fault") == ""

    def text(self, name: str) -> str:
        found = self.chromium.run(f"{self.of(name)}.textContent")
        assert isinstance(found, str)
        return found

    def visible(self, name: str) -> bool:
        return bool(self.chromium.run(f"{self.of(name)}.checkVisibility()"))

    def focused(self) -> str:
        found = self.chromium.run(FOCUSED)
        assert isinstance(found, str)
        return found

    def fault(self) -> str:
        """Wait for an error, and return it."""
        self.chromium.until(f"!{self.of('fault')}.hidden")
        return self.text("fault")

    def saved(self, folder: Path) -> bytes:
        """The file of the picture that is shown, as the button saves it."""
        self.chromium.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        file = folder / self.chromium.run(f"{self.of('save')}.download")
        self.chromium.click("#save")
        until(file.exists)
        return file.read_bytes()

    def check_quiet(self) -> None:
        """Nothing was told in the console, and nobody else was asked."""
        assert self.chromium.told() == []
        own = (f"{self.server.url}/", f"blob:{self.server.url}/", "data:")
        assert [url for url in self.chromium.asked() if not url.startswith(own)] == []

    @staticmethod
    def of(name: str) -> str:
        return f"document.getElementById({json.dumps(name)})"


def alpha(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The alpha of a PNG (height, width)."""
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert image.mode == "RGBA"
        return np.asarray(image)[..., 3]
