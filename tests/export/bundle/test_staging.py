"""Leftovers beside a bundle's place, by exports that were killed, and by those that still run."""

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
    left, lock = sorted(tmp_path.iterdir())
    assert (left / "weights").read_bytes() == b"half"
    assert lock.name == f"{left.name}.lock"
    with staged(output) as folder:
        assert sorted(tmp_path.iterdir()) == [folder, folder.with_name(f"{folder.name}.lock")]
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("published", [False, True])
def test_a_bundle_comes_back_where_its_replacement_was_killed(tmp_path: Path, published: bool) -> None:
    """Without an exchange of names, a kill between two renames leaves no bundle in its place for a moment."""
    output, old = tmp_path / "bundle", tmp_path / ".bundle.0123.replaced"
    old.mkdir()
    (old / "from").write_text("first")
    (tmp_path / ".bundle.0123.partial.lock").touch()
    if published:
        output.mkdir()
        (output / "from").write_text("second")
    with pytest.raises(KeyboardInterrupt), staged(output):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [output]
    assert (output / "from").read_text() == ("second" if published else "first")


@pytest.mark.parametrize("exchanges", [False, True])
def test_a_bundle_is_replaced_with_and_without_an_exchange_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr("sys.platform", "win32")
    output = tmp_path / "bundle"
    for text in ("first", "second"):
        with staged(output) as folder:
            (folder / "from").write_text(text)
        assert (output / "from").read_text() == text
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
