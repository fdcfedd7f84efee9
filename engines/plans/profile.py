"""Optimization profiles made from contracts and a range of sizes for every symbolic axis."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from qwen_image_engine.engines.core.contract import Contract, TensorSpec, split_axis
from qwen_image_engine.engines.plans.entry import Profile, Shape


@dataclass(frozen=True)
class Range:
    """The minimum, optimum and maximum value of a size, TensorRT's kMIN, kOPT and kMAX.

    A plan is tuned for the optimum and takes every value from the minimum to the maximum.
    """

    least: int
    best: int
    largest: int

    def __post_init__(self) -> None:
        """Raise if the sizes are not in order.

        Raises:
            ValueError: the sizes are not 0 <= least <= best <= largest.
        """
        if not 0 <= self.least <= self.best <= self.largest:
            raise ValueError(f"{self}: expected least, best and largest in order")

    @classmethod
    def of(cls, size: int) -> Self:
        """Return the range that holds one size alone."""
        return cls(size, size, size)

    def __add__(self, other: "Range") -> "Range":
        return Range(self.least + other.least, self.best + other.best, self.largest + other.largest)

    def __mul__(self, other: "Range") -> "Range":
        return Range(self.least * other.least, self.best * other.best, self.largest * other.largest)

    def __str__(self) -> str:
        return f"{self.least}:{self.best}:{self.largest}"


def profile(contract: Contract, name: str, axes: Mapping[str, Range]) -> Profile:
    """Return the profile `name` of a component whose symbolic axes have these sizes.

    Raises:
        KeyError: an axis of an input has no size.
    """
    return Profile(name, {spec.name: _extents(spec, axes) for spec in contract.inputs})


def _extents(spec: TensorSpec, axes: Mapping[str, Range]) -> tuple[Shape, Shape, Shape]:
    sizes = [_size(axis, axes) for axis in spec.shape]
    return (
        tuple(size.least for size in sizes),
        tuple(size.best for size in sizes),
        tuple(size.largest for size in sizes),
    )


def _size(axis: str | int, axes: Mapping[str, Range]) -> Range:
    """Return the range of an axis as contracts write it: 64, "tokens", "16*height", "image+text"."""
    if isinstance(axis, int):
        return Range.of(axis)
    total = Range.of(0)
    for part in axis.split("+"):
        factor, symbol = split_axis(part)
        total += Range.of(factor) * axes[symbol]
    return total
