"""Traced graphs, kept from one run of the tests to the next by a hash of all that they are made from.

Tracing takes seconds a graph, and is most of a cold run. The lowering, the writing and the checks that tests are about
run each time.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir
from filelock import FileLock, Timeout

from tests.support.kept import hash_of_sources, kept_folder, write
from tests.support.paths import ROOT

PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "numpy")
START = "export/trace.py"

Trace = Callable[[Any, str, Any], ir.Model]


class KeptTraces:
    """`trace` of `export/trace.py`, through memory and through files in a folder.

    Args:
        trace: the function itself.
        folder: where graphs are kept; workers of one run share it.
        source: hash of everything but the arguments that decides a graph.
    """

    def __init__(self, trace: Trace, folder: Path, source: str) -> None:
        self._trace = trace
        self.folder = folder
        self._source = source
        self._traced: dict[str, ir.Model] = {}
        self.fresh = 0

    def __call__(self, checkpoint: Any, component: str, dtype: Any) -> ir.Model:
        key = self._key(checkpoint, component, dtype)
        if key not in self._traced:
            self._traced[key] = self._kept(key, checkpoint, component, dtype)
        return self._traced[key].clone()

    def _key(self, checkpoint: Any, component: str, dtype: Any) -> str:
        from qwen_image_engine.engines.core.components import COMPONENTS

        config = repr(getattr(checkpoint, COMPONENTS[component].network))
        stored = checkpoint.stored(COMPONENTS[component].network).layout.prefix
        words = "\n".join((self._source, config, stored, component, str(dtype)))
        return hashlib.sha256(words.encode()).hexdigest()

    def _kept(self, key: str, checkpoint: Any, component: str, dtype: Any) -> ir.Model:
        file = self.folder / f"{key}.onnx"
        try:
            self._made(key, checkpoint, component, dtype, wait_s=0)
        except Timeout:  # another worker traces it
            self._make_another(checkpoint, dtype)
            self._made(key, checkpoint, component, dtype, wait_s=-1)
        os.utime(file)  # what is not used any more goes; see `kept.forget`
        return ir.from_proto(ir.serde.onnx.ModelProto.FromString(file.read_bytes()))

    def _made(self, key: str, checkpoint: Any, component: str, dtype: Any, wait_s: float) -> bool:
        """Trace a graph if it is not kept, and return whether it was not; raise `Timeout` while others trace it."""
        file = self.folder / f"{key}.onnx"
        if file.is_file():
            return False
        with FileLock(self.folder / f"{key}.lock", timeout=wait_s):
            if file.is_file():  # another worker has traced it meanwhile
                return False
            self.fresh += 1
            write(file, ir.to_proto(self._trace(checkpoint, component, dtype)).SerializeToString())
        return True

    def _make_another(self, checkpoint: Any, dtype: Any) -> None:
        """Trace the next graph of a checkpoint that an export wants and nobody traces, instead of waiting."""
        from qwen_image_engine.engines.core.components import components_with
        from qwen_image_engine.export.targets import TARGETS

        for row in components_with(checkpoint.transformer.attention):
            if any(target.dtype_of(row.network) == str(dtype) for target in TARGETS.values()):
                key = self._key(checkpoint, row.name, dtype)
                with contextlib.suppress(Timeout):
                    if self._made(key, checkpoint, row.name, dtype, wait_s=0):
                        return


def kept_traces(trace: Trace) -> KeptTraces:
    """Return `trace` through the files that all runs of the tests share."""
    return KeptTraces(trace, kept_folder("traces"), source_hash(ROOT))


def source_hash(home: Path, start: str = START) -> str:
    """Hash a module and everything of this package that it imports, and the packages that trace.

    Args:
        home: the folder in which `export`, `reference` and the others are.
        start: the module's file in it.
    """
    return hash_of_sources(home, _closure(home, start), PACKAGES)


def _closure(home: Path, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += [file for file in _imported((home / name).read_text(encoding="utf-8")) if (home / file).is_file()]
    return seen


@cache
def _imported(source: str) -> tuple[str, ...]:
    """Files that a source may import."""
    files: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qwen_image_engine."):
            module = str(node.module).removeprefix("qwen_image_engine.").replace(".", "/")
            files += [f"{module}.py", f"{module}/__init__.py", *(f"{module}/{alias.name}.py" for alias in node.names)]
    return tuple(files)
