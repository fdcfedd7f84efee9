"""Consumer and workstation cards: compute capability, memory, bandwidth, and arithmetic by number format.

Sources:

- Compute capabilities: NVIDIA's list "CUDA GPU Compute Capability" (developer.nvidia.com/cuda-gpus).
- Memory, bandwidth, multiprocessors (CUDA cores / 128) and boost clocks: NVIDIA's specifications of each card, that is
  the comparison of GeForce cards on nvidia.com, the data sheets of workstation and data-centre cards, and three
  whitepapers: "Ampere GA102 GPU Architecture" v2.0, "Ada GPU Architecture" v2.01, "RTX Blackwell GPU Architecture".
- Operations: derived as multiprocessors * boost clock * `_RATES`, which give the whitepapers' peaks to 0.1%
  (RTX 3090: 71 TFLOPS in bf16; RTX 4090: 165.2 in bf16, 330.3 in FP8; RTX 5090: 209.5, 419 and 1,676 in FP4).

Operations are dense, which is half of the figures "with sparsity" that NVIDIA's overviews of cards print. Products of
floating point are summed in float32, as TensorRT's kernels do; a GeForce card does that at half the rate of sums in
FP16, a workstation card at the full rate. Cards hold their boost clock only while power and temperature allow it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from qwen_image_engine.engines.core.errors import UsageError

FORMATS = ("bf16", "fp8", "int8", "fp4")
"""Number formats of `Card.flops`."""

BUILT_FOR = ("8.6", "8.9", "12.0", "12.1")
"""Compute capabilities of the cards here. TensorRT for RTX also builds for 7.5 and 8.0; 7.5 has no bf16."""


@dataclass(frozen=True)
class Card:
    """A graphics card.

    Attributes:
        name: name that `--gpu` takes, "rtx-5090".
        text: name in messages, "GeForce RTX 5090".
        compute_capability: compute capability, "12.0".
        memory_bytes: nominal size of its memory. The driver keeps a few hundred megabytes, and error correction
            a sixteenth of GDDR6 on workstation cards where it is switched on.
        bandwidth: bandwidth of its memory [bytes per second].
        flops: dense operations per second on tensor cores by number format of the operands, a format of `FORMATS`. A
            format is left out if the card has no tensor cores for it, or if no boost clock is published (laptops have
            as many clocks as makers).
    """

    name: str
    text: str
    compute_capability: str
    memory_bytes: int
    bandwidth: float
    flops: Mapping[str, float]


_GIB = 1 << 30

# Operations per clock of a multiprocessor, dense; a multiplication and its addition are two.
_AMPERE = {"bf16": 512, "int8": 2048}
_ADA = {"bf16": 512, "fp8": 1024, "int8": 2048}
_BLACKWELL = {"bf16": 512, "fp8": 1024, "int8": 2048, "fp4": 4096}
_RATES: Mapping[str, Mapping[str, int]] = {
    "GeForce 30": _AMPERE,
    "GeForce 40": _ADA,
    "GeForce 50": _BLACKWELL,
    "RTX A": {**_AMPERE, "bf16": 1024},
    "RTX Ada": {**_ADA, "bf16": 1024, "fp8": 2048},
    "RTX PRO": {**_BLACKWELL, "bf16": 1024, "fp8": 2048},
    # The data sheet of L40 has half of L40S in every format: 181, 362 and 362 tera-operations.
    "L40": {"bf16": 512, "fp8": 1024, "int8": 1024},
}
"""Rates by family. A workstation card sums products of floating point in float32 as fast as in FP16."""


def _card(
    family: str,
    capability: str,
    text: str,
    memory: int,
    bandwidth: float,
    units: int = 0,
    clock: int = 0,
    name: str = "",
) -> Card:
    """Return a card of `memory` GiB and `bandwidth` GB/s, with `units` multiprocessors at `clock` MHz.

    `units` and `clock` are 0 if no boost clock is published.
    """
    rates = _RATES.get(family, {}) if units and clock else {}
    flops = {kind: units * clock * 1e6 * rate for kind, rate in rates.items()}
    own = name or re.sub(r"[^a-z0-9]+", "-", text.lower().removeprefix("geforce ").removeprefix("nvidia "))
    return Card(own, text, capability, memory * _GIB, bandwidth * 1e9, flops)


_rtx30 = partial(_card, "GeForce 30", "8.6")
_rtx40 = partial(_card, "GeForce 40", "8.9")
_rtx50 = partial(_card, "GeForce 50", "12.0")
_rtx_a = partial(_card, "RTX A", "8.6")
_rtx_ada = partial(_card, "RTX Ada", "8.9")
_rtx_pro = partial(_card, "RTX PRO", "12.0")

_ALL = (
    _rtx30("GeForce RTX 3060", 12, 360, 28, 1777),
    _rtx30("GeForce RTX 3060 Ti", 8, 448, 38, 1665),
    _rtx30("GeForce RTX 3070", 8, 448, 46, 1725),
    _rtx30("GeForce RTX 3070 Ti", 8, 608, 48, 1770),
    _rtx30("GeForce RTX 3080", 10, 760, 68, 1710),
    _rtx30("GeForce RTX 3080 12GB", 12, 912, 70, 1710),
    _rtx30("GeForce RTX 3080 Ti", 12, 912, 80, 1665),
    _rtx30("GeForce RTX 3090", 24, 936, 82, 1695),
    _rtx30("GeForce RTX 3090 Ti", 24, 1008, 84, 1860),
    _rtx_a("RTX A4000", 16, 448, 48, 1560),
    _rtx_a("RTX A4500", 20, 640, 56, 1650),
    _rtx_a("RTX A5000", 24, 768, 64, 1695),
    _rtx_a("RTX A5500", 24, 768, 80, 1665),
    _rtx_a("RTX A6000", 48, 768, 84, 1800),
    _rtx_a("NVIDIA A10", 24, 600, 72, 1695),
    _rtx_a("NVIDIA A40", 48, 696, 84, 1740),
    _rtx40("GeForce RTX 4060", 8, 272, 24, 2460),
    _rtx40("GeForce RTX 4060 Ti", 8, 288, 34, 2535),
    _rtx40("GeForce RTX 4060 Ti 16GB", 16, 288, 34, 2535),
    _rtx40("GeForce RTX 4070", 12, 504, 46, 2475),
    _rtx40("GeForce RTX 4070 SUPER", 12, 504, 56, 2475),
    _rtx40("GeForce RTX 4070 Ti", 12, 504, 60, 2610),
    _rtx40("GeForce RTX 4070 Ti SUPER", 16, 672, 66, 2610),
    _rtx40("GeForce RTX 4080", 16, 717, 76, 2505),
    _rtx40("GeForce RTX 4080 SUPER", 16, 736, 80, 2550),
    _rtx40("GeForce RTX 4090", 24, 1008, 128, 2520),
    _rtx40("GeForce RTX 4080 Laptop", 12, 432),
    _rtx40("GeForce RTX 4090 Laptop", 16, 576),
    _rtx_ada("RTX 2000 Ada", 16, 224, 22, 2130),
    _rtx_ada("RTX 4000 Ada", 20, 360, 48, 2175),
    _rtx_ada("RTX 4500 Ada", 24, 432, 60, 2580),
    _rtx_ada("RTX 5000 Ada", 32, 576, 100, 2550),
    _rtx_ada("RTX 6000 Ada", 48, 960, 142, 2505),
    _rtx_ada("NVIDIA L4", 24, 300, 58, 2040),
    _card("L40", "8.9", "NVIDIA L40", 48, 864, 142, 2490),
    _rtx_ada("NVIDIA L40S", 48, 864, 142, 2520),
    _rtx50("GeForce RTX 5060", 8, 448, 30, 2497),
    _rtx50("GeForce RTX 5060 Ti", 8, 448, 36, 2572),
    _rtx50("GeForce RTX 5060 Ti 16GB", 16, 448, 36, 2572),
    _rtx50("GeForce RTX 5070", 12, 672, 48, 2512),
    _rtx50("GeForce RTX 5070 Ti", 16, 896, 70, 2452),
    _rtx50("GeForce RTX 5080", 16, 960, 84, 2617),
    _rtx50("GeForce RTX 5090", 32, 1792, 170, 2407),
    _rtx50("GeForce RTX 5070 Ti Laptop", 12, 672),
    _rtx50("GeForce RTX 5080 Laptop", 16, 896),
    _rtx50("GeForce RTX 5090 Laptop", 24, 896),
    _rtx_pro("RTX PRO 2000 Blackwell", 16, 288, name="rtx-pro-2000"),
    _rtx_pro("RTX PRO 4000 Blackwell", 24, 672, name="rtx-pro-4000"),
    _rtx_pro("RTX PRO 4500 Blackwell", 32, 896, name="rtx-pro-4500"),
    _rtx_pro("RTX PRO 5000 Blackwell", 48, 1344, name="rtx-pro-5000"),
    _rtx_pro("RTX PRO 6000 Blackwell", 96, 1792, 188, 2617, name="rtx-pro-6000"),
    _card("GB10", "12.1", "NVIDIA GB10 (DGX Spark)", 128, 273, name="gb10"),
)

CARDS: Mapping[str, Card] = {card.name: card for card in _ALL}
"""The cards by name, by compute capability, then family.

GB10 has no memory of its own: it shares that of its processor."""

_WORDS = re.compile(r"nvidia|geforce|blackwell|gpu|generation|[^a-z0-9]")
_SIZE = re.compile(rf"({'|'.join(sorted({str(card.memory_bytes // _GIB) for card in _ALL}))})gb$")
_CLOSEST = 3


def find_card(name: str, advice: str = "; for another card give --compute-capability") -> Card:
    """Return the card of this name.

    Spaces, hyphens, capitals, "NVIDIA", "GeForce" and the "RTX" before a number may be written or left out:
    "rtx-5090", "RTX 5090", "rtx5090" and "5090" are one card. So may be the memory of a card that has only one size.

    Args:
        name: name of the card.
        advice: end of the error's text, for a card that is not in the table.

    Raises:
        UsageError: the table has no such card. The text has the closest names, then all.
    """
    short = {_shortened(card.name): card for card in CARDS.values()}
    asked = _shortened(name)
    size = _SIZE.search(asked)
    for form in (asked, f"rtx{asked}"):
        if form in short:
            return short[form]
        bare = short.get(_SIZE.sub("", form))
        if size and bare and bare.memory_bytes == int(size[1]) * _GIB:
            return bare
    closest = difflib.get_close_matches(asked, short, _CLOSEST)
    near = f"did you mean {', '.join(short[form].name for form in closest)}? " if closest else ""
    raise UsageError(f"unknown card {name!r}; {near}known: {', '.join(CARDS)}{advice}")


def _shortened(name: str) -> str:
    return _WORDS.sub("", name.lower())
