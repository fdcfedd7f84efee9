"""Sizes of the blocks that rotations mix."""

from __future__ import annotations


def block_size(channels: int, largest: int) -> int:
    """Return the largest power of two, at most `largest`, that divides `channels`: 64 for 192, 8 for 120, 1 for 27."""
    return min(channels & -channels, largest)
