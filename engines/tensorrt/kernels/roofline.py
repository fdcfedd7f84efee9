"""The time that a kernel takes at least on a card: an estimate from its data sheet, nothing was timed.

The roofline of Williams, Waterman and Patterson ("Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52, 2009): a kernel takes the longer of its bytes over the bandwidth and its
operations over the card's peak in their number format. Caches, launches, and clocks below boost are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qwen_image_engine.engines.plans.cards import Card
from qwen_image_engine.engines.tensorrt.kernels.kernel import Kernel

Bound = Literal["memory", "arithmetic"]


@dataclass(frozen=True)
class Estimate:
    """An estimate of the time of kernels one after the other.

    Attributes:
        seconds: sum of the kernels' least times.
        bound: limit that takes the greater part of it, "memory" or "arithmetic"; None without a kernel.
        without_peak: number of products and attentions that the card has no peak for, in their format; they count with
            their bytes alone.
    """

    seconds: float
    bound: Bound | None
    without_peak: int


def estimate(kernels: Sequence[Kernel], card: Card) -> Estimate | None:
    """Return the estimate of the kernels on a card; None if the bytes or operations of one are not known."""
    by_limit: dict[Bound, float] = {"memory": 0.0, "arithmetic": 0.0}
    without_peak = 0
    for kernel in kernels:
        if kernel.read is None or kernel.written is None or kernel.flops is None:
            return None
        memory = (kernel.read + kernel.written + kernel.weights) / card.bandwidth
        peak = card.flops.get(kernel.format or "")
        without_peak += bool(kernel.flops) and peak is None
        arithmetic = kernel.flops / peak if peak else 0.0
        by_limit["arithmetic" if arithmetic > memory else "memory"] += max(memory, arithmetic)
    bound: Bound = "arithmetic" if by_limit["arithmetic"] > by_limit["memory"] else "memory"
    return Estimate(sum(by_limit.values()), bound if kernels else None, without_peak)
