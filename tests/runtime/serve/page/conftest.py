"""A browser on the page of a server of toy pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.runtime.serve import app
from tests.support.chromium import BROWSER, Browser, browser
from tests.support.images import patches
from tests.support.served import Served, png
from tests.support.served_page import Tab


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for the tests of a file."""
    if BROWSER is None:
        pytest.skip("no chromium on PATH")
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def tab(chromium: Browser, server: Served) -> Iterator[Tab]:
    """The page of `server`, opened."""
    found = Tab(chromium, server)
    found.open()
    yield found
    chromium.run("window.stop()")  # ends what the page still asks for; a page between would take a process of its own


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The checked values of the requests that the server has received, files as `(name, bytes)`."""
    found: list[dict[str, Any]] = []
    real = app.prepare_job

    def record(values: dict[str, Any], *rest: Any) -> Any:
        copy = dict(values)
        for name in ("image", "mask"):
            if values.get(name):
                copy[name] = [(file.filename, file.file.read()) for file in values[name]]
                for file in values[name]:
                    file.file.seek(0)
        found.append(copy)
        return real(values, *rest)

    monkeypatch.setattr(app, "prepare_job", record)
    return found


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    """A picture of 96x64 pixels."""
    file = tmp_path / "cat.png"
    file.write_bytes(png(patches(96, 64)))
    return file
