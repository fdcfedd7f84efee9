"""Memory of a picture's stages on a CPU, from sizes alone: fitted to what ONNX Runtime takes at the released widths.

The measurements are benchmarks/results/full-size-*.json; docs/full-size.md has them beside these predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qwen_image_engine.engines.contract import Dims
from qwen_image_engine.runtime.tiles import spans

PROMPT_TOKENS = 200
"""Of a prompt as people write it, its template included."""

_F32 = 4
_PROCESS = 100_000_000  # Python, numpy and the backend
_LAYOUT = 150_000_000  # one weight of 12288x4096 laid out for its kernel while it runs
_ENCODER_WIDTHS, _STEP_WIDTHS = 27, 23  # activations that a token holds at once, in hidden states
_CACHE_SHARE = 1.4  # of the keys and values that the prefix returns: those, and what it works with
_DECODER_WEIGHTS = 0.7  # of the VAE's, in the larger of the decoder's two parts, laid out for the kernels
_DECODER_WIDTHS = 225  # activations that a latent of the largest tile holds at once, in features


def stage_memory(
    sizes: Dims,
    weights: Mapping[str, int],
    width: int,
    height: int,
    halo: int,
    references: Sequence[tuple[int, int]] = (),
    tokens: int = PROMPT_TOKENS,
) -> dict[str, int]:
    """Bytes that a process holds at most in each stage of one picture, one engine loaded at a time ("sequential").

    Args:
        sizes: of the checkpoint.
        weights: bytes of each network's in an engine.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        halo: of the decoder's tiles, in latents.
        references: (width, height) of the reference images as they are fitted, in pixels.
        tokens: of the prompt.
    """
    inner, rows, columns = sizes.heads * sizes.head_dim, height // 16, width // 16
    latents = [width // 16 * (height // 16) for width, height in references]
    cache = cache_bytes(sizes, tokens + sum(latents))
    tokens += sum(latents) // 4
    tile = max(_reads(rows, halo)) * max(_reads(columns, halo))
    return {
        # These two are run once, on weights mapped from their file.
        "text_encoder": _PROCESS + tokens * sizes.encoder_hidden * _F32 * _ENCODER_WIDTHS,
        "prefix": _PROCESS + _LAYOUT + int(cache * _CACHE_SHARE),
        "step": _PROCESS + weights["transformer"] + cache + rows * columns * inner * _F32 * _STEP_WIDTHS,
        "vae_decoder": _PROCESS
        + int(weights["vae"] * _DECODER_WEIGHTS)
        + tile * sizes.features * _F32 * _DECODER_WIDTHS,
    }


def cache_bytes(sizes: Dims, tokens: int, bytes_each: int = _F32) -> int:
    """Of the keys and values of a prefix."""
    return 2 * sizes.layers * tokens * sizes.heads * sizes.head_dim * bytes_each


def _reads(side: int, halo: int) -> list[int]:
    return [span.read_stop - span.read_start for span in spans(side, halo)]
