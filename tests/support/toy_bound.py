"""Weights of the toy networks that their plans take as inputs, in files that safetensors' own writer made.

Two of them are one input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.plans.bound_weight import BoundWeight, WeightPiece
from qwen_image_engine.runtime.system.tensor_header import read_tensor_header
from tests.support.fake_tensorrt_runtime import PlanWeight, mark

JOINED = ("blocks.0.attn.to_q.weight", "blocks.0.attn.to_k.weight")
BLOCKS = ("+".join(JOINED), "blocks.1.mlp.weight")
STEP_ALONE = "modulation.weight"
_NAMES = {torch.bfloat16: "bfloat16", torch.int8: "int8", torch.float8_e4m3fn: "float8_e4m3fn"}


def toy_weights(folder: Path) -> dict[str, tuple[BoundWeight, ...]]:
    """The bound weights of each component: of the transformer's alike, but for one that the steps alone have."""
    torch.manual_seed(0)
    tensors = {
        "transformer": {
            JOINED[0]: torch.randn(3, 7).to(torch.bfloat16),
            JOINED[1]: torch.randn(2, 7).to(torch.bfloat16),
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
        names = dict.fromkeys(BLOCKS[0] if name in JOINED else name for name in of)
        found[component] = tuple(
            BoundWeight.of(
                _NAMES[of[name.split("+")[0]].dtype],
                [_piece(folder, row.network, piece, tuple(of[piece].shape)) for piece in name.split("+")],
            )
            for name in names
        )
    return found


def _piece(folder: Path, network: str, name: str, shape: tuple[int, ...]) -> WeightPiece:
    path = folder / f"{network}.safetensors"
    (place,) = (item for item in read_tensor_header(path) if item.name == name)
    data = path.read_bytes()[place.offset : place.offset + place.nbytes]
    return WeightPiece(name, shape, path.name, place.offset, hashlib.sha256(data).hexdigest())


def plan_weights(folder: Path, weights: Sequence[BoundWeight]) -> list[PlanWeight]:
    """The weights as a plan has them, which knows their bytes."""
    found = []
    for weight in weights:
        data = b"".join(
            (folder / piece.file).read_bytes()[piece.offset :][: weight.nbytes(piece)] for piece in weight.pieces
        )
        found.append(PlanWeight(weight.name, weight.dtype, weight.shape, mark(data)))
    return found
