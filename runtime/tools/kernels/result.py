"""The kernels of a bundle's plans in numbers: by kind, of one block, and of the ends.

Every field whose name begins with `estimate_` follows from a card's data sheet; nothing was timed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_image_engine.engines.plans.cards import Card
from qwen_image_engine.engines.tensorrt.kernels.kernel import Kernel
from qwen_image_engine.engines.tensorrt.kernels.kinds import KINDS
from qwen_image_engine.engines.tensorrt.kernels.roofline import Estimate, estimate

FORMAT = "qwen-image-kernels"
SCHEMA = 1
NOT_TIMED = "estimate, nothing was timed"
"""Words that stand beside every figure that follows from a data sheet."""

CORE = ("product", "attention")
"""Kinds that a block cannot do without; the traffic of all others depends on how a graph is spelt."""


@dataclass(frozen=True)
class Totals:
    """Sums over kernels.

    Attributes:
        kernels: number of kernels.
        read: bytes of activations read; None if a size is not known.
        written: bytes of activations written; None likewise.
        weights: bytes of weights, scales and other constants read.
        flops: operations of products and attentions; None if a size is not known.
        formats: number formats of products and attentions, sorted.
        estimate: time on the card; None without a card or if a size is not known.
    """

    kernels: int
    read: int | None
    written: int | None
    weights: int
    flops: int | None
    formats: tuple[str, ...]
    estimate: Estimate | None

    @classmethod
    def of(cls, kernels: Sequence[Kernel], card: Card | None) -> Totals:
        """Return the sums."""
        return cls(
            len(kernels),
            _sum([kernel.read for kernel in kernels]),
            _sum([kernel.written for kernel in kernels]),
            sum(kernel.weights for kernel in kernels),
            _sum([kernel.flops for kernel in kernels]),
            tuple(sorted({kernel.format for kernel in kernels if kernel.format})),
            None if card is None else estimate(kernels, card),
        )

    @property
    def moved(self) -> int | None:
        """Bytes of activations read and written."""
        return None if self.read is None or self.written is None else self.read + self.written

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        found = self.estimate
        return {
            "kernels": self.kernels,
            "bytes_read": self.read,
            "bytes_written": self.written,
            "bytes_weights": self.weights,
            "flops": self.flops,
            "formats": [*self.formats],
            "estimate_seconds": None if found is None else found.seconds,
            "estimate_bound": None if found is None else found.bound,
            "estimate_without_peak": None if found is None else found.without_peak,
        }


@dataclass(frozen=True)
class Part:
    """Kernels by kind.

    Attributes:
        kinds: sums by kind, in the order of `KINDS`, without kinds that no kernel has.
        total: sums over all of them.
        beside: sums over all but products and attentions.
    """

    kinds: Mapping[str, Totals]
    total: Totals
    beside: Totals

    @classmethod
    def of(cls, kernels: Sequence[Kernel], card: Card | None) -> Part:
        """Return the sums by kind."""
        by_kind = {kind: [kernel for kernel in kernels if kernel.kind == kind] for kind in KINDS}
        return cls(
            {kind: Totals.of(found, card) for kind, found in by_kind.items() if found},
            Totals.of(kernels, card),
            Totals.of([kernel for kernel in kernels if kernel.kind not in CORE], card),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "kinds": {kind: found.to_json() for kind, found in self.kinds.items()},
            "total": self.total.to_json(),
            "beside_products_and_attention": self.beside.to_json(),
        }


@dataclass(frozen=True)
class BlockPart:
    """A block of a network, the middle one of those alike.

    Attributes:
        part: kernels by kind.
        blocks: number of blocks between the first attention and the last.
        alike: number of them with the same kinds and traffic as this one.
        least_bytes: bytes of activations that the mathematics of a block needs; None if not known.
    """

    part: Part
    blocks: int
    alike: int
    least_bytes: int | None

    @property
    def times_least(self) -> float | None:
        """Bytes moved over the bytes that are needed; None if one is not known."""
        moved = self.part.total.moved
        return None if moved is None or not self.least_bytes else moved / self.least_bytes

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "blocks": self.blocks,
            "alike": self.alike,
            "least_bytes": self.least_bytes,
            "times_least": self.times_least,
            **self.part.to_json(),
        }


@dataclass(frozen=True)
class ProfileKernels:
    """The kernels of one profile of a plan.

    Attributes:
        component: name of the component.
        file: name of the plan in the bundle.
        capabilities: compute capabilities that the plan is built for.
        profile: name of the profile.
        sizes: value of each symbol of the contract at the profile's optimum, at which bytes and operations are counted.
        sizes_known: whether the account gives the sizes of all tensors.
        whole: all kernels.
        block: one block; None if fewer than two attentions are fused.
        ends: kernels outside of the blocks, which are those of one more block, cut in two; None without blocks.
    """

    component: str
    file: str
    capabilities: tuple[str, ...]
    profile: str
    sizes: Mapping[str, int]
    sizes_known: bool
    whole: Part
    block: BlockPart | None
    ends: Part | None

    @property
    def sizes_text(self) -> str:
        """Sizes for a person: "batch 1, tokens 4096, prefix 4190"."""
        return ", ".join(f"{symbol} {value}" for symbol, value in self.sizes.items())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "component": self.component,
            "plan": self.file,
            "compute_capabilities": [*self.capabilities],
            "profile": self.profile,
            "sizes": dict(self.sizes),
            "sizes_of": "optimum",
            "sizes_known": self.sizes_known,
            "all": self.whole.to_json(),
            "block": None if self.block is None else self.block.to_json(),
            "ends": None if self.ends is None else self.ends.to_json(),
        }


@dataclass(frozen=True)
class KernelReport:
    """The kernels of a bundle's plans.

    Attributes:
        bundle: folder of the bundle.
        target: target and precision of the bundle, "tensorrt bf16".
        builders: builders with their versions, "tensorrt-rtx 1.7.1.116".
        card: card of the estimates; None for no estimates.
        profiles: every profile of every plan.
        foreign: names of the components whose plans are not for the card, as it has none of its own.
    """

    bundle: str
    target: str
    builders: tuple[str, ...]
    card: Card | None
    profiles: tuple[ProfileKernels, ...]
    foreign: tuple[str, ...]

    @property
    def foreign_text(self) -> str:
        """Sentence for a person on the components in `foreign`; "" if there are none."""
        if self.card is None or not self.foreign:
            return ""
        names = ", ".join(self.foreign)
        return f"{names}: no plan is for {self.card.compute_capability}, so kernels are those of other cards"

    def to_json(self) -> dict[str, Any]:
        """Return the document of `--json`."""
        card = self.card
        return {
            "kind": "kernels",
            "format": FORMAT,
            "schema": SCHEMA,
            "path": self.bundle,
            "target": self.target,
            "builders": [*self.builders],
            "gpu": None
            if card is None
            else {
                "name": card.name,
                "compute_capability": card.compute_capability,
                "bandwidth": card.bandwidth,
                "flops": dict(card.flops),
                "has_plan": not self.foreign,
            },
            "estimate": NOT_TIMED,
            "profiles": [profile.to_json() for profile in self.profiles],
        }


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
