"""Adapters merged into a component.

The products are added when the weights are read (`tensor_blocks`), so memory holds the factors of one weight at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qwen_image_engine.reference.lora.adapter import Adapter
from qwen_image_engine.reference.storage.merged_tensor import LowRank, MergedTensor
from qwen_image_engine.reference.storage.stored_network import StoredNetwork


def merge(component: StoredNetwork, adapters: Sequence[Adapter]) -> StoredNetwork:
    """Return the component with the updates of all `adapters` in its weights, added in their order."""
    updates: dict[str, list[LowRank]] = {}
    for adapter in adapters:
        for name, update in adapter.updates.items():
            updates.setdefault(name, []).append(update)
    merged = {name: MergedTensor.of(component.tensors[name], tuple(found)) for name, found in updates.items()}
    return replace(component, tensors={**component.tensors, **merged})
