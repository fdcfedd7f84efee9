"""Paths with `~`, as a shell reads them."""

import re
from pathlib import Path

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.system.files import with_home


def test_home_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert with_home("~/x") == tmp_path / "x"
    with pytest.raises(QwenImageError, match=re.escape("~nosuchuser/x: there is no home folder ~nosuchuser; write")):
        with_home("~nosuchuser/x")
