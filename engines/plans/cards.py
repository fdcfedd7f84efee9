"""Consumer and workstation cards: compute capability, memory, bandwidth, and arithmetic by number format."""

from collections.abc import Mapping
from dataclasses import dataclass

from qwen_image_engine.engines.core.errors import UsageError


@dataclass(frozen=True)
class Card:
    """A graphics card.

    Attributes:
        name: name that `--gpu` takes, "rtx-5090".
        text: name in messages, "GeForce RTX 5090".
        compute_capability: compute capability, "12.0".
        memory_bytes: size of its memory.
        bandwidth: bandwidth of its memory [bytes per second].
        flops: dense operations per second by number format of the operands: "bf16", "fp8", "int8", "fp4".
    """

    name: str
    text: str
    compute_capability: str
    memory_bytes: int
    bandwidth: float
    flops: Mapping[str, float]


_GIB = 1 << 30

CARDS: Mapping[str, Card] = {
    card.name: card
    for card in (
        Card("rtx-5090", "GeForce RTX 5090", "12.0", 32 * _GIB, 1.792e12, {}),
        Card("rtx-4090", "GeForce RTX 4090", "8.9", 24 * _GIB, 1.008e12, {}),
        Card("rtx-3090", "GeForce RTX 3090", "8.6", 24 * _GIB, 0.936e12, {}),
    )
}
"""The cards by name."""


def find_card(name: str) -> Card:
    """Return the card of this name.

    Raises:
        UsageError: the table has no such card.
    """
    if name not in CARDS:
        raise UsageError(f"unknown card {name!r}; known: {', '.join(CARDS)}")
    return CARDS[name]
