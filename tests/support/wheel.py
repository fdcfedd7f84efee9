"""The wheel of this tree, built from a copy of it."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

SOURCES = ("calibration", "engines", "export", "reference", "runtime")
OTHERS = ("LICENSE", "README.md", "pyproject.toml", "setup.py")


def build_wheel(folder: Path) -> Path:
    """Build in a copy under `folder`, which keeps this tree as it is."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in OTHERS:
        shutil.copy(ROOT / name, source)
    code = "import sys, setuptools.build_meta as backend; print(backend.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(folder)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=120)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))
