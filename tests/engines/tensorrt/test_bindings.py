"""The stubs that TensorRT's calls are checked against are those of the real 11.4 API."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

CALLS = """
import tensorrt as trt


def use(builder: trt.Builder, config: trt.IBuilderConfig, layer: trt.IAttentionInputLayer) -> None:
    config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    layer.attention.decomposable = False
    {line}
"""


def mypy(tensorrt_stub: Path, folder: Path, line: str) -> str:
    # A name of its own: mypy's cache goes by size and time, and two of these lines are equally long.
    source = folder / f"calls_{sum(line.encode())}.py"
    source.write_text(CALLS.format(line=line))
    stubs = tensorrt_stub.parents[1]
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--strict", "--cache-dir", stubs / ".mypy_cache", source],
        env={"MYPYPATH": str(stubs), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout


@pytest.mark.parametrize(
    ("package", "module"), [("tensorrt", "engines/tensorrt/bindings.py"), ("tensorrt_rtx", "engines/tensorrt/rtx.py")]
)
def test_one_module_imports_each_package(package: str, module: str) -> None:
    names = re.compile(rf"^\s*(?:import {package}\b|from {package}\b)", re.MULTILINE)
    files = (file for top in ("engines", "runtime") for file in (ROOT / top).rglob("*.py"))
    found = [file.relative_to(ROOT).as_posix() for file in files if names.search(file.read_text(encoding="utf-8"))]
    assert found == [module]


@pytest.mark.process
def test_what_11_removed_is_caught(tensorrt_stub: Path, tmp_path: Path) -> None:
    assert mypy(tensorrt_stub, tmp_path, "builder.reset()").startswith("Success")
    for line, words in (
        ("config.set_flag(trt.BuilderFlag.FP16)", '"type[BuilderFlag]" has no attribute "FP16"'),
        ("builder.build_engine(None, config)", '"Builder" has no attribute "build_engine"'),
        ("config.add_optimization_profile(1)", 'has incompatible type "int"; expected "IOptimizationProfile"'),
        ("builder.is_network_supported()", 'Missing positional arguments "network", "config"'),
    ):
        assert words in mypy(tensorrt_stub, tmp_path, line)
