import subprocess
import sys
from pathlib import Path

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.system.folder_lock import FolderBusyError, locked

HOLDER = """
import os, signal, sys
from pathlib import Path
from qwen_image_engine.runtime.system.folder_lock import locked

with locked(Path(sys.argv[1]), "never"):
    print("locked", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_is_created_and_locked_once(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with locked(folder, "somebody writes it; wait"):
        with (
            pytest.raises(FolderBusyError, match=r"^.*/folder: somebody writes it; wait$"),
            locked(folder, "somebody writes it; wait"),
        ):
            pytest.fail("locked twice")
        with locked(tmp_path / "other", "another lock"):
            pass
    with locked(folder, "released"):
        assert list(folder.iterdir()) == []
    assert issubclass(FolderBusyError, QwenImageError)


def test_an_exception_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path, "never"):
        raise KeyboardInterrupt
    with locked(tmp_path, "released"):
        pass


def test_a_folder_that_cannot_be_created_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError), locked(tmp_path / "file", "never"):
        pytest.fail("a file was locked")
    with pytest.raises(FileNotFoundError), locked(tmp_path / "absent" / "folder", "never"):
        pytest.fail("no folder was locked")


@pytest.mark.process
def test_a_killed_process_releases_the_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(FolderBusyError), locked(tmp_path, "busy"):
        pytest.fail("locked twice")
    holder.communicate("end\n")
    assert holder.returncode < 0
    with locked(tmp_path, "released"):
        pass
