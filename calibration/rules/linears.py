"""The linears that 8-bit recipes quantise, by the checkpoint's names, and the pairs that share a channel.

Everything else keeps its precision: embedders, time, modulation and the final layers are 2% of the weights, under 0.01%
of a step's arithmetic, and carry what every block sees; inputs of norms reach 8.5e3; the VAE is convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_BLOCK = re.compile(r"(?:^|\.)(?:transformer_blocks|layers)\.(\d+)\.")


@dataclass(frozen=True)
class Linears:
    """Of one network.

    Attributes:
        blocks: what stands before the number of a block in a name.
        inputs: linears of every block, as they are named after the number, those that read the same input together;
            the first of each names the input.
        pairs: (first, second): channels of the first's output reach the second's input each on its own.
    """

    blocks: str
    inputs: tuple[tuple[str, ...], ...]
    pairs: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
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
"""By network; one that is not in here is not quantised."""


def block_index(name: str) -> int | None:
    """The number of the block that a linear is in."""
    found = _BLOCK.search(name)
    return int(found[1]) if found else None


WEIGHT = ".weight"
