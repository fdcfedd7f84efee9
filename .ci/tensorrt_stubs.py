"""Writes typed stubs of the real Python APIs of TensorRT and of TensorRT for RTX, on a machine without a GPU.

    python .ci/tensorrt_stubs.py FOLDER [tensorrt] [tensorrt-rtx]

    MYPYPATH=FOLDER mypy           the code against TensorRT
    MYPYPATH=FOLDER/rtx mypy       the same code against TensorRT for RTX, and what only that has

TensorRT's bindings are on PyPI, the libraries that they link to are not. They load where three empty libraries have the
few symbols that they ask for. TensorRT for RTX is whole where its extra is installed. pybind11-stubgen reads every
class, method, signature and docstring out of the bindings. Nothing here builds or runs an engine: the stubs answer
whether a call exists and takes these arguments, no more.

FOLDER/rtx has two packages: tensorrt_rtx, and a tensorrt with its names, which code for both products imports.

The folder is kept: where it has the stubs of a version already, nothing is done.
"""

import argparse
import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

VERSION = "11.4.0.106"
BINDINGS = f"tensorrt-cu13-bindings=={VERSION}"
STUBGEN = "pybind11-stubgen==3.0.0"
# The bindings' packages have a version, the modules that stubs are made of have none.
OPENING = "# mypy: ignore-errors\n__version__: str\n"

# What each library has to export before the bindings load; none of it is ever called.
SYMBOLS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
        "getInferLibVersion",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": (
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
    ),
}


def main() -> int:
    """Write the stubs of each product unless they are there in this version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("products", nargs="*", metavar="PRODUCT", help="tensorrt, tensorrt-rtx (both)")
    options = parser.parse_args()
    for product in options.products or WRITERS:
        WRITERS[product](options.folder)
    return 0


def write_tensorrt(folder: Path) -> None:
    """Write FOLDER/tensorrt."""
    if shutil.which("cc") is None:
        raise SystemExit("tensorrt_stubs: needs a C compiler, cc")
    write(folder / "tensorrt" / "__init__.pyi", f"TensorRT {VERSION}", tensorrt)


def write_tensorrt_rtx(folder: Path) -> None:
    """Write FOLDER/rtx/tensorrt_rtx, and FOLDER/rtx/tensorrt with the same names."""
    try:
        version = importlib.metadata.version("tensorrt-rtx")
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit("tensorrt_stubs: needs the package tensorrt-rtx") from None
    write(folder / "rtx" / "tensorrt_rtx" / "__init__.pyi", f"TensorRT for RTX {version}", tensorrt_rtx)
    write(folder / "rtx" / "tensorrt" / "__init__.pyi", "TensorRT for RTX", lambda work: "from tensorrt_rtx import *\n")


WRITERS: Mapping[str, Callable[[Path], None]] = {"tensorrt": write_tensorrt, "tensorrt-rtx": write_tensorrt_rtx}


def write(stub: Path, title: str, make: Callable[[Path], str]) -> None:
    """Write a stub, unless it is there under this title."""
    head = f"# {title}\n{OPENING}"
    if stub.is_file() and stub.read_text(encoding="utf-8").startswith(head):
        print(f"{stub}: {title} already")
        return
    with tempfile.TemporaryDirectory() as name:
        text = head + make(Path(name))
    stub.parent.mkdir(parents=True, exist_ok=True)
    partial = stub.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(stub)
    print(f"{stub}: {len(text.splitlines())} lines, {title}")


def tensorrt(work: Path) -> str:
    """Return the stub of TensorRT, whose bindings load with empty libraries."""
    packages = installed(work, "--no-deps", BINDINGS, STUBGEN)
    for library, symbols in SYMBOLS.items():
        source = work / f"{library}.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols))
        soname = work / f"lib{library}.so.{VERSION.partition('.')[0]}"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", soname, source], check=True)
    paths = f"{packages}{os.pathsep}{packages / 'tensorrt_bindings'}"
    return generated(work, "tensorrt_bindings.tensorrt", {"LD_LIBRARY_PATH": str(work), "PYTHONPATH": paths})


def tensorrt_rtx(work: Path) -> str:
    """Return the stub of TensorRT for RTX, which this Python has."""
    packages = installed(work, "--no-deps", STUBGEN)
    return generated(work, "tensorrt_rtx_bindings.tensorrt_rtx", {"PYTHONPATH": str(packages)})


def installed(work: Path, *arguments: str) -> Path:
    """Return a folder with packages that pip installed."""
    packages = work / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", packages, *arguments], check=True)
    return packages


def generated(work: Path, module: str, environment: Mapping[str, str]) -> str:
    """Return what pybind11-stubgen makes of a module; it goes by what it can import, so numpy has to be there."""
    found = subprocess.run(
        [sys.executable, "-m", "pybind11_stubgen", module, "--ignore-all-errors", "-o", work / "stubs"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    stubs = [*(work / "stubs").rglob("*.pyi")]
    if not stubs:
        raise SystemExit(f"tensorrt_stubs: no stub came out of {module}:\n{found.stderr[-2000:]}")
    return "import builtins\n" + readable(stubs[0].read_text(encoding="utf-8"))


def readable(text: str) -> str:
    """The stub as valid Python.

    Few signatures are none, with arguments called `in` or defaults in the wrong order: those take anything. The module
    has a `bool` of its own, a DataType, so that annotations have to mean the built-in one by name. A class that the
    bindings register behind its first use has no name there.
    """
    lines = text.split("\n")
    while True:
        try:
            ast.parse("\n".join(lines))
        except SyntaxError as error:
            at = (error.lineno or 1) - 1
            function = re.match(r"(\s*)def (\w+)\(", lines[at])
            lines[at] = (
                f"{function[1]}def {function[2]}(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:"
                if function
                else f"# {lines[at].strip()}"
            )
        else:
            break
    text = "\n".join(line for line in lines if line != "from __future__ import annotations")
    text = re.sub(r"(?<=_runtime_cache\(self\) -> )\.\.\.|(?<=self, cache: )\.\.\.", "IRuntimeCache", text)
    return re.sub(r"(?<=-> )bool(?=:)|(?<=\w: )bool(?=[,)]| =|$)", "builtins.bool", text, flags=re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main())
