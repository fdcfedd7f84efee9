"""Pairs of linears that share their channels, in every block of a checkpoint's network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qwen_image_engine.calibration.rules.linears import LINEARS
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint


@dataclass(frozen=True)
class Pair:
    """A pair of linears that share channels.

    Attributes:
        first: name of the first linear's weight without ".weight".
        second: name of the second linear's weight without ".weight".
        groups: number of adjacent heads in the first linear's output. Each head feeds one head of the second linear's
            input, or all heads that share it.
    """

    first: str
    second: str
    groups: int


def linear_pairs(checkpoint: Checkpoint, network: str, linears: Iterable[str]) -> list[Pair]:
    """Return the pairs whose second linear is in `linears`."""
    names = list(linears)
    pairs = []
    for first_end, second_end in LINEARS[network].pairs:
        groups = checkpoint.text_encoder.num_key_value_heads if second_end == "self_attn.o_proj" else 1
        pairs += [
            Pair(name.removesuffix(second_end) + first_end, name, groups)
            for name in names
            if name.endswith(f".{second_end}")
        ]
    return pairs
