"""Pairs of linears that share their channels, in every block of a checkpoint's network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qwen_image_engine.calibration.rules.linears import LINEARS
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint


@dataclass(frozen=True)
class Pair:
    """Two linears, by the names of their weights without ".weight".

    `first` gives `groups` heads side by side; each reaches one head of `second`'s input, or as many as share it.
    """

    first: str
    second: str
    groups: int


def linear_pairs(checkpoint: Checkpoint, network: str, linears: Iterable[str]) -> list[Pair]:
    """The pairs whose second linear is among `linears`."""
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
