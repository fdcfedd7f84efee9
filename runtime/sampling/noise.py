"""Initial noise, drawn on the host and equal to torch's CPU generator for the same seed.

The algorithm is `normal_fill` of torch 2.13's `ATen/native/cpu/DistributionTemplates.h` over mt19937, the same
generator as numpy's frozen `RandomState`. Transcendentals are computed in float64, so the noise does not depend on this
machine's vector library. The difference from torch (at most 5e-7) is the error of torch's own float32 polynomials.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.bfloat16 import from_bfloat16, to_bfloat16
from qwen_image_engine.engines.core.errors import UsageError

NoiseDtype = Literal["float32", "bfloat16"]

_BLOCK = 16


def draw_noise(shape: tuple[int, ...], seed: int, dtype: NoiseDtype = "float32") -> NDArray[np.float32]:
    """Draw the noise of `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=dtype)`.

    Args:
        shape: shape of the noise; for latents (batch, 1, channels, height/16, width/16), as in the diffusers pipeline.
        seed: seed in torch's range, -2^63 .. 2^64-1; only the low 32 bits matter.
        dtype: the dtype in which torch draws. bfloat16 has the same values rounded, except for the last 16: if the
            count is not a multiple of 16, torch redraws them from another place of the stream.

    Returns:
        Noise, float32 of `shape`; for "float32" within 1e-6 of torch, for "bfloat16" within one bfloat16 step.

    Raises:
        UsageError: the seed is out of range.
    """
    check_seed(seed)
    count = math.prod(shape)
    stream = np.random.RandomState(seed & 0xFFFFFFFF)
    noise = _scalar_normals(stream, count) if count < _BLOCK else _block_normals(stream, count, dtype)
    if dtype == "bfloat16":
        noise = from_bfloat16(to_bfloat16(noise))
    return noise.reshape(shape)


def check_seed(seed: int) -> None:
    """Raise if torch would not accept a seed.

    Raises:
        UsageError: the seed is out of range.
    """
    if not -(2**63) <= seed < 2**64:
        raise UsageError(f"seed {seed} is out of range: expected -2^63 to 2^64-1")


def _block_normals(stream: np.random.RandomState, count: int, dtype: NoiseDtype) -> NDArray[np.float32]:
    """Draw `count` >= 16 values in blocks of 16. If there is a remainder, torch redraws all of the last 16."""
    whole = count // _BLOCK * _BLOCK
    # In float32 torch first fills all `count` uniforms, in bfloat16 it draws block by block: the redraw of the last 16
    # then reads the stream from `count` or from `whole`.
    redraw_at = count if dtype == "float32" else whole
    words = _words(stream, count if count == whole else redraw_at + _BLOCK)
    noise = np.empty(count, np.float32)
    noise[:whole] = _box_muller(words[:whole])
    if count != whole:
        noise[-_BLOCK:] = _box_muller(words[redraw_at:])
    return noise


def _box_muller(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Turn blocks of 16 words, 8 for the radius and 8 for the angle, into 8 cosines and 8 sines."""
    uniforms = (words & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2**-24)  # [0, 1)
    blocks = uniforms.reshape(-1, 2, 8)
    radius = np.sqrt(-2.0 * np.log((np.float32(1) - blocks[:, 0]).astype(np.float64)))
    # The angle is rounded to float32 as in torch: left exact, the noise would be off by up to 2.5e-6.
    angle = (np.float32(2 * math.pi) * blocks[:, 1]).astype(np.float64)
    noise = np.empty(blocks.shape, np.float32)
    noise[:, 0] = radius * np.cos(angle)
    noise[:, 1] = radius * np.sin(angle)
    return noise.reshape(-1)


def _scalar_normals(stream: np.random.RandomState, count: int) -> NDArray[np.float32]:
    """Draw fewer than 16 values. torch then draws pairs in float64, each from two 64-bit words."""
    pairs = (count + 1) // 2
    words = _words(stream, 4 * pairs).astype(np.uint64).reshape(pairs, 2, 2)
    wide = (words[..., 0] << np.uint64(32)) | words[..., 1]  # (pairs, 2)
    uniforms = (wide & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log1p(-uniforms[:, 1]))
    angle = 2 * math.pi * uniforms[:, 0]
    both = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return both.reshape(-1)[:count].astype(np.float32)


def _words(stream: np.random.RandomState, count: int) -> NDArray[np.uint32]:
    return stream.randint(0, 2**32, size=count, dtype=np.uint32)
