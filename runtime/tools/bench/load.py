"""Loaders of a benchmark's contenders, by name, in the process that runs the contender."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from qwen_image_engine.engines.backends import BACKENDS, require
from qwen_image_engine.engines.core.entries import load_entry
from qwen_image_engine.engines.core.errors import QwenImageError, one_line, pass_interruption
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.system.memory_use import MemoryWatch
from qwen_image_engine.runtime.tools.bench.contender import Runner, Unavailable, pipeline_runner
from qwen_image_engine.runtime.tools.bench.spec import PEERS, ContenderSpec


def load_contender(spec: ContenderSpec, watch: MemoryWatch | None) -> Runner:
    """Load a contender in this process. Its timings include the time of loading.

    Raises:
        Unavailable: the contender cannot run here, for example because a package is not installed or the processor has
            no instructions for the precision.
        QwenImageError: the bundle or the checkpoint is damaged, or they do not belong together.
    """
    return _peer(spec, watch) if spec.name in PEERS else _engine(spec, watch)


def _engine(spec: ContenderSpec, watch: MemoryWatch | None) -> Runner:
    try:
        require(spec.name)
    except QwenImageError as error:
        raise Unavailable(str(error)) from error
    bundle = Bundle.open(Path(spec.bundle))
    try:
        pipeline = QwenImage.load(
            bundle,
            engine=spec.name,
            memory=spec.memory,
            threads=spec.threads,
            watch=watch,
            kernel_specialization=spec.kernel_specialization,
        )
    except QwenImageError as error:  # no bf16 in this processor, no memory, a component that the bundle has not
        raise Unavailable(str(error)) from error
    disk_bytes = bundle.manifest.bytes
    precision = computed_precision(spec.name, bundle.manifest.precision)
    return pipeline_runner(pipeline, version(BACKENDS[spec.name].distribution), precision, disk_bytes)


def computed_precision(engine: str, precision: str) -> str:
    """Return the precision in which a backend computes a bundle of this precision.

    A backend that computes in bf16 does not use the dtype of the weights.
    """
    computes = BACKENDS[engine].computes
    if computes is None:
        return precision
    return computes if precision in ("fp32", "bf16") else f"{precision}, rest {computes}"


def _peer(spec: ContenderSpec, watch: MemoryWatch | None) -> Runner:
    peer = PEERS[spec.name]
    try:
        drawer: Runner = load_entry(peer.load)(spec, watch)
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed; install it with: {peer.install}") from error
    except (ImportError, OSError) as error:
        pass_interruption(error)
        raise Unavailable(f"does not load ({one_line(error)}); install it again with: {peer.install}") from error
    return drawer
