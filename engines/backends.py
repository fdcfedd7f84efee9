"""The table of backends: the names that `--engine` takes, the package of each backend, and the loader of its graphs.

The module and the package of a backend are imported when the backend is first asked for, through the entries of its
row.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from qwen_image_engine.engines.core.contract import Contract
from qwen_image_engine.engines.core.engine import Engine
from qwen_image_engine.engines.core.entries import load_entry
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.core.packages import newer_than_supported
from qwen_image_engine.engines.tensorrt.package import (
    TENSORRT_RTX,
    KernelSpecialization,
    OtherProductError,
    installed_version,
)

LINUX, MACOS, WINDOWS = "Linux", "macOS", "Windows"
SYSTEMS = (LINUX, MACOS, WINDOWS)
"""Operating systems that the project is written for."""

MAX_THREADS = 1024
"""Maximum number of threads of one run, more than any supported processor has cores.

OpenVINO starts the requested number of threads; 5,000 took minutes."""


@dataclass(frozen=True)
class Backend:
    """A row of the table of backends.

    Attributes:
        name: the word that `--engine` takes.
        package: entry of the function that imports the backend's package.
        create: entry of the function that loads a graph, as (model, contract, threads); None if the backend runs plans
            that `build` made of a bundle's graphs.
        distribution: name of the package as pip installs it.
        device: where the backend computes and where its keys and values are.
        computes: precision in which the backend computes all unquantised parts; None for the graph's own precision.
        target: the one target whose graphs the backend runs; None if the backend runs the graphs of every target that
            no other backend names.
        systems: systems that the package is published for.
        builder: entry of the function that returns the version of the package where it builds plans on a machine that
            cannot run them, or None; None if the backend runs no plans, or builds them where it runs them.
    """

    name: str
    package: str
    create: str | None
    distribution: str
    device: Literal["cpu", "gpu"] = "cpu"
    computes: str | None = None
    target: str | None = None
    systems: tuple[str, ...] = SYSTEMS
    builder: str | None = None


_WITH_CUDA = (LINUX, WINDOWS)
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
            systems=_WITH_CUDA,
        ),
        Backend("openvino", _OPENVINO, "engines.openvino.cpu:create", "openvino"),
        Backend("openvino-bf16", _OPENVINO, "engines.openvino.cpu:create_bf16", "openvino", computes="bf16"),
        Backend(
            "tensorrt",
            "engines.tensorrt.package:tensorrt",
            None,
            "tensorrt",
            device="gpu",
            target="tensorrt",
            systems=_WITH_CUDA,
        ),
        Backend(
            "tensorrt-rtx",
            "engines.tensorrt.package:tensorrt_rtx",
            None,
            "tensorrt-rtx",
            device="gpu",
            target="tensorrt",
            systems=_WITH_CUDA,
            builder="engines.tensorrt.package:builder_without_gpu",
        ),
    )
}

ENGINES = tuple(BACKENDS)
"""Names of all backends."""

ON_GPU = tuple(row.name for row in BACKENDS.values() if row.device == "gpu")
"""Names of the backends that hold keys and values on a GPU, in 16 bits."""


def find_backend(name: str) -> Backend:
    """Return the row of the backend `name`.

    Raises:
        UsageError: the table has no backend of this name.
    """
    if name not in BACKENDS:
        raise UsageError(f"unknown engine {name!r}; known: {', '.join(BACKENDS)}")
    return BACKENDS[name]


def backends_on(system: str) -> tuple[str, ...]:
    """Return the names of the backends whose packages are published for a system of `SYSTEMS`."""
    return tuple(row.name for row in BACKENDS.values() if system in row.systems)


def backends_for(target: str) -> tuple[str, ...]:
    """Return the names of the backends that run graphs for a target."""
    named = any(row.target == target for row in BACKENDS.values())
    return tuple(row.name for row in BACKENDS.values() if row.target == (target if named else None))


@dataclass(frozen=True)
class Installation:
    """State of a backend's package on this machine.

    Attributes:
        name: name of the backend.
        version: version of the package; None if the package is missing or does not work here.
        missing: why the package does not work, and what to do; None if the package works.
        newer: sentence that names the package's version and the older supported ones; None for a supported version.
        builds: version of the package if it builds plans here and cannot run them; None otherwise.
    """

    name: str
    version: str | None
    missing: str | None
    newer: str | None = None
    builds: str | None = None


def load_engine(backend: str, model: Path, contract: Contract, threads: int | None = None) -> Engine:
    """Load the graph in the file `model` on a backend that runs graphs.

    Args:
        backend: name of a row of `BACKENDS`.
        model: path of the ONNX file.
        contract: tensors that the graph takes and returns.
        threads: threads of one run on the CPU; None leaves the number to the backend, which takes every core.

    Raises:
        UsageError: there is no such backend, the backend runs plans and not graphs, or `threads` is not in 1 to
            `MAX_THREADS`.
        QwenImageError: the backend's package is not installed, the backend needs bf16 instructions or a GPU that the
            machine does not have, the package is not published for this system, the file is missing or is no ONNX
            model, the graph does not match the contract, or there is not enough memory.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"{threads} threads: expected 1 to {MAX_THREADS}")
    _check_system(find_backend(backend))
    create = BACKENDS[backend].create
    if create is None:
        raise UsageError(f"{backend} runs what qwen-image build made of a bundle's graphs, not a graph; load a bundle")
    engine: Engine = load_entry(create)(model, contract, threads)
    return engine


def check_kernel_specialization(backend: str, chosen: str | None) -> None:
    """Check the choice of when kernels for the shapes of a call are compiled; None leaves it to the backend.

    Raises:
        UsageError: the choice is unknown, or the backend has none.
    """
    known = get_args(KernelSpecialization)
    if chosen is not None and chosen not in known:
        raise UsageError(f"kernel specialization {chosen!r}: expected {' or '.join(known)}")
    if chosen is not None and backend != TENSORRT_RTX.engine:
        raise UsageError(
            f"kernel specialization {chosen!r}: {backend} does not compile kernels for single shapes; leave it out, or "
            f"run with --engine {TENSORRT_RTX.engine}"
        )


def require(backend: str) -> Any:
    """Import the package of a backend and return the package.

    Raises:
        QwenImageError: the package is not installed, does not load, is older than supported, or cannot work on this
            machine.
    """
    _check_system(BACKENDS[backend])
    return load_entry(BACKENDS[backend].package)()


def _check_system(backend: Backend) -> None:
    system = {"Darwin": MACOS}.get(platform.system(), platform.system())
    if system in SYSTEMS and system not in backend.systems:
        raise QwenImageError(
            f"{backend.distribution} is not published for {system}, only for {' and '.join(backend.systems)}; "
            f"engines for {system}: {', '.join(backends_on(system))}"
        )


def available() -> tuple[Installation, ...]:
    """Return the state of each backend's package. Each package is imported to prove that it loads."""
    names: dict[str, str] = {}
    for row in BACKENDS.values():
        names.setdefault(row.package, row.name)
    return tuple(map(_installation, names.values()))


def _installation(backend: str) -> Installation:
    try:
        package = require(backend)
        return Installation(backend, str(package.__version__), None, newer_than_supported(package))
    except OtherProductError:  # two that cannot be loaded together
        return Installation(backend, installed_version(backend), None)
    except QwenImageError as error:
        builder = BACKENDS[backend].builder
        return Installation(backend, None, str(error), builds=None if builder is None else load_entry(builder)())
