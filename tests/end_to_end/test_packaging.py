"""The wheel: every module of every room is in it, and it works outside the checkout."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.wheel import SOURCES, build_wheel

HOME = "qwen_image_engine"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build_wheel(folder)) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def python(code: str, installed: Path) -> str:
    """Output of `code`, with the wheel and the other packages, and without this tree.

    The editable install is a line in a .pth file, which `-S` leaves out.
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=installed.parent,
        env={"PYTHONPATH": f"{installed}:{sysconfig.get_path('purelib')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.process
def test_every_module_is_in_it(installed: Path) -> None:
    modules = {
        path.relative_to(ROOT)
        for folder in SOURCES
        for path in (ROOT / folder).rglob("*.py")
        if "optimum" not in path.parts
    }
    packed = {path.relative_to(installed / HOME) for path in (installed / HOME).rglob("*.py")}
    assert packed == modules


@pytest.mark.process
def test_the_page_of_the_server_is_in_it(installed: Path) -> None:
    page = Path("runtime/serve/page")
    files = [file for file in (ROOT / page).iterdir() if file.suffix in (".html", ".css", ".js")]
    assert files
    assert all((installed / HOME / page / file.name).read_bytes() == file.read_bytes() for file in files)


@pytest.mark.process
def test_the_small_checkpoint_is_not(installed: Path) -> None:
    assert not list(installed.rglob("*.safetensors"))


@pytest.mark.process
def test_the_runtime_is_imported_from_it(installed: Path) -> None:
    code = "import sys, qwen_image_engine.runtime.pipeline as module; print(module.__file__, 'torch' in sys.modules)"
    assert python(code, installed).split() == [str(installed / HOME / "runtime" / "pipeline.py"), "False"]


@pytest.mark.process
def test_the_command_starts_from_it(installed: Path) -> None:
    code = (
        "import sys; sys.argv = ['qwen-image', '--help']; from qwen_image_engine.runtime.cli.entry import main; main()"
    )
    assert "usage: qwen-image" in python(code, installed)
