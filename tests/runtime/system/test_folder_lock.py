import subprocess
import sys
from pathlib import Path

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.system.folder_lock import FolderBusyError, locked

HOLDER = """
import sys
from pathlib import Path
from qwen_image_engine.runtime.system.folder_lock import locked

with locked(Path(sys.argv[1]), "never"):
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_a_lock_is_held_once_and_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    with locked(file, "never"):
        with (
            pytest.raises(FolderBusyError, match=r"^folder: somebody writes it; wait$"),
            locked(file, "folder: somebody writes it; wait"),
        ):
            pytest.fail("locked twice")
        with locked(tmp_path / "other", "another lock"):
            pass
    with locked(file, "released"):
        assert list(tmp_path.iterdir()) == [file]
    assert list(tmp_path.iterdir()) == []
    assert issubclass(FolderBusyError, QwenImageError)


def test_a_link_in_the_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / ".lock").symlink_to("other")
    with pytest.raises(QwenImageError, match="expected a lock file; remove it"), locked(tmp_path / ".lock", "never"):
        pytest.fail("locked")
    assert (tmp_path / "other").read_bytes() == b"other"


def test_an_exception_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / ".lock", "never"):
        raise KeyboardInterrupt
    with locked(tmp_path / ".lock", "released"):
        pass


def test_a_file_that_cannot_be_created_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file" / ".lock", "never"):
        pytest.fail("locked nothing")


def test_without_filelock_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "filelock", None)
    words = r"^filelock is not installed; install it with: pip install 'qwen-image-engine\[export\]'$"
    with pytest.raises(QwenImageError, match=words), locked(tmp_path / ".lock", "never"):
        pytest.fail("locked without a lock")


@pytest.mark.process
def test_a_killed_process_releases_the_lock(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(FolderBusyError, match="held"), locked(file, "held"):
        pytest.fail("locked twice")
    holder.kill()
    holder.communicate()
    assert file.exists()
    with locked(file, "released"):
        pass
    assert not file.exists()
