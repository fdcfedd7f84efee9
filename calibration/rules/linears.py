"""The linears that 8-bit recipes quantise, by the checkpoint's names, and the pairs that share channels.

All other layers keep their precision. Embedders, time, modulation and the final layers are 2% of the weights and under
0.01% of a step's arithmetic, and every block reads their results. Inputs of norms reach 8.5e3. The VAE consists of
convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_BLOCK = re.compile(r"(?:^|\.)(?:transformer_blocks|layers)\.(\d+)\.")


@dataclass(frozen=True)
class Linears:
    """The linears to quantise in one network.

    Attributes:
        blocks: the part of a name before the number of a block.
        inputs: linears of every block, grouped by the input that they read. Names are the part after the block's
            number. The first linear of a group names the input.
        pairs: (first, second): each channel of the first linear's output reaches the second linear's input separately.
    """

    blocks: str
    inputs: tuple[tuple[str, ...], ...]
    pairs: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all linears of a block."""
        return tuple(name for group in self.inputs for name in group)


LINEARS: Mapping[str, Linears] = {
    "transformer": Linears(
        "transformer_blocks",
        (
            ("attn.to_q", "attn.to_k", "attn.to_v"),
            ("attn.to_out.0",),
            ("img_mlp.proj", "img_mlp.gate_layer"),
            ("img_mlp.out",),
        ),
        (("attn.to_v", "attn.to_out.0"), ("img_mlp.proj", "img_mlp.out")),
    ),
    "text_encoder": Linears(
        "model.language_model.layers",
        (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.o_proj",),
            ("mlp.gate_proj", "mlp.up_proj"),
            ("mlp.down_proj",),
        ),
        (("self_attn.v_proj", "self_attn.o_proj"), ("mlp.up_proj", "mlp.down_proj")),
    ),
}
"""Linears by network. Other networks are not quantised."""


def block_index(name: str) -> int | None:
    """Return the number of the block that contains a linear, or None if the linear is in no block."""
    found = _BLOCK.search(name)
    return int(found[1]) if found else None


WEIGHT = ".weight"
