"""Weights of the toy networks that their plans take as inputs, in files that safetensors' own writer made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.device_array import size_bytes
from qwen_image_engine.engines.plans.bound_weight import BoundWeight
from qwen_image_engine.runtime.system.tensor_header import read_tensor_header
from tests.support.fake_tensorrt_runtime import PlanWeight, mark

BLOCKS = ("blocks.0.attn.weight", "blocks.1.mlp.weight")
STEP_ALONE = "modulation.weight"
_NAMES = {torch.bfloat16: "bfloat16", torch.int8: "int8", torch.float8_e4m3fn: "float8_e4m3fn"}


def toy_weights(folder: Path) -> dict[str, tuple[BoundWeight, ...]]:
    """The bound weights of each component: of the transformer's alike, but for one that the steps alone have."""
    torch.manual_seed(0)
    tensors = {
        "transformer": {
            BLOCKS[0]: torch.randn(5, 7).to(torch.bfloat16),
            BLOCKS[1]: torch.randint(-128, 128, (3, 11), dtype=torch.int8),
            STEP_ALONE: torch.randn(2, 9).to(torch.float8_e4m3fn),
        },
        "text_encoder": {"layers.0.weight": torch.randn(6, 4).to(torch.bfloat16)},
    }
    for network, of in tensors.items():
        save_file(of, folder / f"{network}.safetensors")
    found: dict[str, tuple[BoundWeight, ...]] = {}
    for component, row in COMPONENTS.items():
        of = dict(tensors.get(row.network, {}))
        if row.runs != "step":
            of.pop(STEP_ALONE, None)
        found[component] = tuple(
            _bound(folder, row.network, name, _NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in of.items()
        )
    return found


def _bound(folder: Path, network: str, name: str, dtype: str, shape: tuple[int, ...]) -> BoundWeight:
    path = folder / f"{network}.safetensors"
    (place,) = (item for item in read_tensor_header(path) if item.name == name)
    data = path.read_bytes()[place.offset : place.offset + place.nbytes]
    return BoundWeight(name, dtype, shape, path.name, place.offset, hashlib.sha256(data).hexdigest())


def plan_weights(folder: Path, weights: Sequence[BoundWeight]) -> list[PlanWeight]:
    """The weights as a plan has them, which knows their bytes."""
    found = []
    for weight in weights:
        data = (folder / weight.file).read_bytes()[weight.offset :][: size_bytes(weight.shape, weight.dtype)]
        found.append(PlanWeight(weight.name, weight.dtype, weight.shape, mark(data)))
    return found
