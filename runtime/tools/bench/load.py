"""The ways that a benchmark knows, by name, and how each is loaded in the process that runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from qwen_image_engine.engines.core.engine import ENGINES, package_name, require
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.failure import one_line, pass_interruption
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.components import Memory
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.system.memory_use import MemoryWatch
from qwen_image_engine.runtime.tools.bench.contender import Drawer, Unavailable, pipeline_drawer

PEERS = ("torch", "torch-compile", "diffusers", "diffusers-bf16")
"""Those that run the checkpoint itself: the reference in fp32, the same with its transformer's blocks compiled, and
diffusers' own pipeline, in fp32 and in the precision that its users take."""

BASELINES = (*PEERS, *ENGINES)
INSTALL = "pip install 'qwen-image-engine[export]'"
INSTALL_DIFFUSERS = f"{INSTALL} diffusers transformers torchvision"


@dataclass(frozen=True)
class WaySpec:
    """A way by name, and what it needs to load; plain values, for it travels to a process of its own.

    Attributes:
        name: one of `ENGINES` or `PEERS`.
        role: "engine" or "baseline".
        bundle: the folder.
        checkpoint: of peers, None for the one that the manifest names.
        threads: None for every core.
        memory: "resident" or "sequential"; diffusers holds everything.
        resolution: side in pixels of reference images.
        hashes: whether a peer compares its weights' hash with the bundle's when it has loaded.
    """

    name: str
    role: str
    bundle: str
    checkpoint: str | None
    threads: int | None
    memory: Memory
    resolution: int
    hashes: bool = False


def load_way(spec: WaySpec, watch: MemoryWatch | None) -> Drawer:
    """Load it in this process; its timings hold the loads.

    Raises:
        Unavailable: it cannot run here: not installed, or no instructions for its precision.
        QwenImageError: the bundle or the checkpoint is damaged, or they do not belong together.
    """
    return _peer(spec, watch) if spec.name in PEERS else _engine(spec, watch)


def _engine(spec: WaySpec, watch: MemoryWatch | None) -> Drawer:
    try:
        require(spec.name)
    except QwenImageError as error:
        raise Unavailable(str(error)) from error
    bundle = Bundle.open(Path(spec.bundle))
    try:
        pipeline = QwenImage.load(bundle, engine=spec.name, memory=spec.memory, threads=spec.threads, watch=watch)
    except QwenImageError as error:  # no bf16 in this processor, no memory, a component that the bundle has not
        raise Unavailable(str(error)) from error
    disk_bytes = sum(file.bytes for file in bundle.manifest.files.values())
    precision = computed_precision(spec.name, bundle.manifest.precision)
    return pipeline_drawer(pipeline, version(package_name(spec.name)), precision, disk_bytes)


def computed_precision(engine: str, precision: str) -> str:
    """What an engine computes a bundle of that precision in: the one in bf16 does not use the weights' own."""
    if not engine.endswith("-bf16"):
        return precision
    return "bf16" if precision in ("fp32", "bf16") else f"{precision}, rest bf16"


def _peer(spec: WaySpec, watch: MemoryWatch | None) -> Drawer:
    load: Callable[[WaySpec, MemoryWatch | None], Drawer]
    install = INSTALL_DIFFUSERS if spec.name.startswith("diffusers") else INSTALL
    try:
        if spec.name.startswith("diffusers"):
            from qwen_image_engine.reference.baselines.diffusers import load_diffusers as load
        else:
            from qwen_image_engine.reference.baselines.torch import load_torch as load
        return load(spec, watch)
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed; install it with: {install}") from error
    except (ImportError, OSError) as error:
        pass_interruption(error)
        raise Unavailable(f"does not load ({one_line(error)}); install it again with: {install}") from error
