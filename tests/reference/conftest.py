"""A checkpoint to damage."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def copied(random_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a checkpoint that a test may damage."""

    def copy(**options: Any) -> Path:
        return shutil.copytree(random_checkpoint(**options), tmp_path / "model")

    return copy
