"""What is left beside a bundle's place by exports that were killed, and by those that still run."""

import subprocess
import sys
from pathlib import Path

import pytest

from qwen_image_engine.export.bundle.staging import staged

KILLED = """
import os, signal, sys
from pathlib import Path
from qwen_image_engine.export.bundle.staging import staged

with staged(Path(sys.argv[1])) as folder:
    (folder / "weights").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.process
def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    output = tmp_path / "a [bundle]"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(output)], check=False)
    assert killed.returncode < 0
    (left,) = tmp_path.iterdir()
    assert (left / "weights").read_bytes() == b"half"
    with staged(output) as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == [output]


def test_an_export_that_runs_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with staged(output) as first:
        (first / "from").write_text("first")
        with staged(output) as second:
            assert first.is_dir()
            (second / "from").write_text("second")
        assert (output / "from").read_text() == "second"
    assert (output / "from").read_text() == "first"
    assert list(tmp_path.iterdir()) == [output]
