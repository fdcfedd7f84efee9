"""The check that a GPU is new enough for a graph."""

from __future__ import annotations

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda.compute_capability import BF16
from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.runtime.bundle.manifest_entries import ComponentEntry


def check_capability(name: str, entry: ComponentEntry, facts: DeviceInfo, instead: str) -> None:
    """Raise if a GPU is too old for a graph.

    Args:
        name: name of the component.
        entry: the component's entry in the manifest.
        facts: facts of the GPU.
        instead: other precisions of the same target, which the error recommends.

    Raises:
        QwenImageError: the GPU's compute capability is below the minimum of the graph's precisions.
    """
    least, has = entry.least_compute_capability, float(facts.compute_capability)
    if least is not None and has < least:
        raise QwenImageError(
            f"{name}: its graph is in {entry.precision}, which needs a GPU of compute capability {least} or newer; "
            f"{facts.name} has {facts.compute_capability}. "
            f"Export with {f'--precision {instead}' if has >= BF16 else '--target cuda --precision fp16'}"
        )
