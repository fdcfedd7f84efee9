"""Writes typed stubs of TensorRT's real Python API, on a machine without TensorRT's libraries or a GPU.

    python .ci/tensorrt_stubs.py FOLDER          then: MYPYPATH=FOLDER mypy

The bindings are on PyPI, the libraries that they link to are not. They load where three empty libraries have the few
symbols that they ask for, and pybind11-stubgen reads every class, method, signature and docstring out of them. Nothing
here builds or runs an engine: the stubs answer whether a call exists and takes these arguments, no more.

The folder is kept: where it has the stubs of this version already, nothing is done.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "11.4.0.106"
PACKAGES = (f"tensorrt-cu13-bindings=={VERSION}", "pybind11-stubgen==3.0.0")
HEAD = f"# TensorRT {VERSION}\n# mypy: ignore-errors\nimport builtins\n"

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
    """Write FOLDER/tensorrt/__init__.pyi unless it is there in this version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    stub = parser.parse_args().folder / "tensorrt" / "__init__.pyi"
    if stub.is_file() and stub.read_text(encoding="utf-8").startswith(HEAD):
        print(f"{stub}: TensorRT {VERSION} already")
        return 0
    if shutil.which("cc") is None:
        print("tensorrt_stubs: needs a C compiler, cc", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        text = HEAD + readable(generated(Path(name)))
        stub.parent.mkdir(parents=True, exist_ok=True)
        partial = stub.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(stub)
    print(f"{stub}: {len(text.splitlines())} lines, TensorRT {VERSION}")
    return 0


def generated(work: Path) -> str:
    """What pybind11-stubgen makes of the bindings; it goes by what it can import, so numpy has to be there."""
    packages = work / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--target", packages, *PACKAGES], check=True)
    for library, symbols in SYMBOLS.items():
        source = work / f"{library}.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols))
        soname = work / f"lib{library}.so.{VERSION.partition('.')[0]}"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", soname, source], check=True)
    places = {"LD_LIBRARY_PATH": work, "PYTHONPATH": f"{packages}{os.pathsep}{packages / 'tensorrt_bindings'}"}
    found = subprocess.run(
        [
            *(sys.executable, "-m", "pybind11_stubgen", "tensorrt_bindings.tensorrt"),
            *("--ignore-all-errors", "-o", work / "stubs"),
        ],
        env={**os.environ, **{name: str(place) for name, place in places.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    stubs = [*(work / "stubs").rglob("*.pyi")]
    if not stubs:
        raise SystemExit(f"tensorrt_stubs: no stub came out of {PACKAGES[0]}:\n{found.stderr[-2000:]}")
    return stubs[0].read_text(encoding="utf-8")


def readable(text: str) -> str:
    """The stub as valid Python.

    Few signatures are none, with arguments called `in` or defaults in the wrong order: those take anything. The module
    has a `bool` of its own, a DataType, so that annotations have to mean the built-in one by name.
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
    return re.sub(r"(?<=-> )bool(?=:)|(?<=\w: )bool(?=[,)]| =|$)", "builtins.bool", text, flags=re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main())
