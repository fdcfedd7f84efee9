"""The table of backends: what `--engine` names, how each is installed, and how a graph is loaded on one.

A backend's module and its package are imported when it is asked for, by the entries of its row, never before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qwen_image_engine.engines.core.contract import Contract
from qwen_image_engine.engines.core.engine import Engine
from qwen_image_engine.engines.core.entries import load_entry
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError

MAX_THREADS = 1024
"""More than any processor here has; OpenVINO starts as many as it is told, and 5,000 took minutes."""


@dataclass(frozen=True)
class Backend:
    """One row of the table.

    Attributes:
        name: the word that `--engine` takes.
        package: entry of the function that imports the backend's package.
        create: entry of the function that loads a graph, as (model, contract, threads); None if the backend runs plans
            that `build` made of a bundle's graphs.
        distribution: name of the package as pip installs it.
        device: where it computes, and keeps keys and values.
        computes: precision of everything that is not quantised, if it is another than the graph's.
        target: the one target whose graphs it runs; None if it runs those of every target that no backend is named for.
    """

    name: str
    package: str
    create: str | None
    distribution: str
    device: Literal["cpu", "gpu"] = "cpu"
    computes: str | None = None
    target: str | None = None


_OPENVINO = "engines.openvino.package:openvino"

BACKENDS: Mapping[str, Backend] = {
    row.name: row
    for row in (
        Backend(
            "onnxruntime", "engines.onnxruntime.package:onnxruntime", "engines.onnxruntime.cpu:create", "onnxruntime"
        ),
        Backend(
            "onnxruntime-cuda",
            "engines.onnxruntime.package:onnxruntime_cuda",
            "engines.onnxruntime.cuda:create",
            "onnxruntime-gpu",
            device="gpu",
            target="cuda",
        ),
        Backend("openvino", _OPENVINO, "engines.openvino.cpu:create", "openvino"),
        Backend("openvino-bf16", _OPENVINO, "engines.openvino.cpu:create_bf16", "openvino", computes="bf16"),
        Backend("tensorrt", "engines.tensorrt.package:tensorrt", None, "tensorrt", device="gpu", target="tensorrt"),
    )
}

ENGINES = tuple(BACKENDS)
"""Names of all backends."""

ON_GPU = tuple(row.name for row in BACKENDS.values() if row.device == "gpu")
"""Names of the backends that keep keys and values on a GPU, in 16 bits."""


def find_backend(name: str) -> Backend:
    """Return the row of a backend.

    Raises:
        UsageError: the table has no such row.
    """
    if name not in BACKENDS:
        raise UsageError(f"unknown engine {name!r}; known: {', '.join(BACKENDS)}")
    return BACKENDS[name]


def backends_for(target: str) -> tuple[str, ...]:
    """Return the names of the backends that run graphs for a target."""
    named = any(row.target == target for row in BACKENDS.values())
    return tuple(row.name for row in BACKENDS.values() if row.target == (target if named else None))


@dataclass(frozen=True)
class Installation:
    """State of a backend's package on this machine.

    Attributes:
        name: the backend's.
        version: None if the package is missing or does not work here.
        missing: why, and what to do; None if it works.
    """

    name: str
    version: str | None
    missing: str | None


def load_engine(backend: str, model: Path, contract: Contract, threads: int | None = None) -> Engine:
    """Load the graph in the file `model` on a backend that runs graphs.

    Args:
        backend: name of a row of `BACKENDS`.
        model: the file.
        contract: tensors that the graph takes and returns.
        threads: number for one run on the CPU; None leaves it to the backend, which takes every core.

    Raises:
        UsageError: no such backend, or fewer threads than one.
        QwenImageError: its package is not installed, the processor has no bf16 or the machine no GPU where that is
            asked for, the file is missing or no ONNX model, the graph is another than its contract's, or memory does
            not suffice.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"{threads} threads: expected 1 to {MAX_THREADS}")
    create = find_backend(backend).create
    if create is None:
        raise UsageError(f"{backend} runs what qwen-image build made of a bundle's graphs, not a graph; load a bundle")
    engine: Engine = load_entry(create)(model, contract, threads)
    return engine


def require(backend: str) -> Any:
    """Import the package of a backend.

    Raises:
        QwenImageError: it is not installed, does not load, or cannot work on this machine.
    """
    return load_entry(BACKENDS[backend].package)()


def available() -> tuple[Installation, ...]:
    """Return the state of each package, which is imported to prove that it loads."""
    names: dict[str, str] = {}
    for row in BACKENDS.values():
        names.setdefault(row.package, row.name)
    return tuple(map(_installation, names.values()))


def _installation(backend: str) -> Installation:
    try:
        return Installation(backend, str(require(backend).__version__), None)
    except QwenImageError as error:
        return Installation(backend, None, str(error))
