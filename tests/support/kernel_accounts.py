"""Accounts of real builds of `step`, the contracts that belong to them, and what a block of each costs.

They are of the spelling that exports had first (docs/performance.md), weights inside, and are data for the counter.
`MOST_OF_SHAPES` has the limits of today's exports; `tests/benchmarks/rtx/test_spellings.py` has the released width's.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

from qwen_image_engine.engines.core.contract import Contract, Dims, contract
from qwen_image_engine.engines.plans.entry import Profile
from qwen_image_engine.engines.plans.profile import Range, profile

_TESTS = Path(__file__).parent.parent / "engines" / "tensorrt"
SIZES = {"512x512": 1024, "1024x1024": 4096, "2048x2048": 16384}
"""Profiles of the accounts of `shapes`, with the latents of their optimum."""

PREFIX = 4190
"""Tokens before the step's own at the optimum of every profile: a prompt and one reference image."""


@dataclass(frozen=True)
class BlockNumbers:
    """Kernels of a middle block, and bytes of activations read and written.

    Attributes:
        kernels: all kernels.
        products: products among them.
        beside: bytes of all kernels but products and attention.
        moved: bytes of all kernels.
        least: bytes that the mathematics needs.
    """

    kernels: int
    products: int
    beside: int
    moved: int
    least: int


BLOCKS = {
    "wide bf16 12.0": BlockNumbers(14, 4, 1_113_636_864, 1_952_514_048, 738_197_504),
    "wide fp8 12.0": BlockNumbers(17, 7, 1_147_240_448, 1_868_660_736, 570_425_344),
    "wide fp8 8.9": BlockNumbers(16, 4, 1_751_220_224, 2_422_308_864, 570_425_344),
    "shapes bf16": BlockNumbers(14, 4, 54_343_424, 93_737_984, 34_675_200),
}
"""4,096 wide, 32 heads of 128, MLP of 12,288, 4,096 tokens and 4,096 before them; and `shapes` for 8.6 at 1024x1024
with `PREFIX` tokens before."""

MOST_OF_SHAPES = 13, 76_800_000
"""Kernels of a block, and bytes that they move, of today's `shapes` in bf16 with bound weights, at the same sizes."""


def shapes_account(precision: str, capability: str) -> str:
    """The file beside a plan of `shapes` in default shapes."""
    return _text(_TESTS / "build" / "accounts" / f"step-{precision}-{capability}.json.gz")


def wide_account(precision: str, capability: str) -> str:
    """The file beside a plan of two blocks of the released width, of one profile."""
    return _text(_TESTS / "kernels" / "accounts" / f"step-wide-{precision}-{capability}.json.gz")


def step_contract(heads: int, head_dim: int, layers: int) -> Contract:
    return contract("step", Dims(128, 32, 128, layers, heads, head_dim, 16, 16, 64, 24, 3), "bfloat16")


def step_profiles(of: Contract, batch: Range | None = None) -> list[Profile]:
    """The profiles of the accounts of `shapes`."""
    least = 4
    found = []
    for name, tokens in SIZES.items():
        axes = {
            "batch": batch or Range.of(1),
            "tokens": Range(least, tokens, tokens),
            "prefix": Range(1, PREFIX, 13817),
        }
        found.append(profile(of, name, axes))
        least = tokens + 1
    return found


def _text(file: Path) -> str:
    return gzip.decompress(file.read_bytes()).decode()
