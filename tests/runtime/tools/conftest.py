"""A benchmark that the command has run, for what it prints and for its report."""

from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from qwen_image_engine.runtime.cli.main import main
from tests.support.shared import SharedFolders


@pytest.fixture(scope="session")
def benchmarked(exported: Callable[..., Path], shared: SharedFolders) -> Path:
    """A folder with `lines.txt`, the standard output of a benchmark of two engines, and `written/report`; read-only."""

    def run(folder: Path) -> None:
        written = folder / "written"
        written.mkdir(parents=True)
        words = ["bench", str(exported()), "--baseline", "openvino", "--rounds", "2"]
        words += ["--report", str(written / "report")]
        with (folder / "lines.txt").open("w", encoding="utf-8") as lines, redirect_stdout(lines):
            assert main([*words, "--size", "64x32", "-s", "2", "--threads", "1"]) == 0

    return shared(run, "benchmarked")
