"""Memory of a picture's stages on a CPU, from sizes alone.

The formulas are fitted to the memory that ONNX Runtime takes at the released widths. The measurements are
benchmarks/results/full-size-*.json; docs/full-size.md has them beside these predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qwen_image_engine.engines.core.contract import Dims
from qwen_image_engine.runtime.model.facts import ModelFacts
from qwen_image_engine.runtime.model.tiles import spans
from qwen_image_engine.runtime.text.prompt import USUAL_PROMPT_TOKENS

_F32 = 4
_PROCESS = 100_000_000  # Python, numpy and the backend
_LAYOUT = 150_000_000  # one weight of 12288x4096 laid out for its kernel while it runs
_ENCODER_WIDTHS, _STEP_WIDTHS = 27, 23  # activations that a token holds at once, in hidden states
_CACHE_SHARE = 1.4  # of the keys and values that the prefix returns: those, and what it works with
_SCORES = 2  # of each pair of tokens in each head: scores and probabilities
_VISION_WIDTHS, _VAE_ENCODER_WIDTHS = 20, 4  # of a patch, and of a pixel; by count of the largest, not yet measured
_DECODER_WEIGHTS = 0.7  # of the VAE's, in the larger of the decoder's two parts, laid out for the kernels
_DECODER_WIDTHS = 225  # activations that a latent of the largest tile holds at once, in features


@dataclass(frozen=True)
class StageWidths:
    """The widths that stages depend on, besides the contracts' sizes.

    Attributes:
        vision: number of channels of the vision tower.
        vae: number of channels of the VAE encoder's first level.
        facts: facts of the model that the host side knows too.
    """

    vision: int
    vae: int
    facts: ModelFacts


def stage_memory(
    sizes: Dims,
    widths: StageWidths,
    weights: Mapping[str, int],
    width: int,
    height: int,
    references: Sequence[tuple[int, int]] = (),
    tokens: int = USUAL_PROMPT_TOKENS,
) -> dict[str, int]:
    """Return the peak bytes of a process in each stage of one picture.

    One engine is loaded at a time ("sequential").

    Args:
        sizes: sizes of the checkpoint's contracts.
        widths: widths of the checkpoint's networks.
        weights: bytes of each network's weights in an engine.
        width: width of the picture in pixels.
        height: height of the picture in pixels.
        references: (width, height) of the reference images in pixels, as they are fitted.
        tokens: number of tokens of the prompt.
    """
    facts = widths.facts
    inner, rows, columns = sizes.heads * sizes.head_dim, height // 16, width // 16
    latents = [width // 16 * (height // 16) for width, height in references]
    read = tokens + sum(latents) // 4
    cache = facts.cache_bytes(tokens + sum(latents))
    tile = max(_reads(rows, facts.decoder_halo)) * max(_reads(columns, facts.decoder_halo))
    stages = {}
    if references:
        largest = max(latents)
        stages["vision"] = _PROCESS + largest * widths.vision * _F32 * _VISION_WIDTHS
        stages["vae_encoder"] = _PROCESS + weights["vae"] + largest * 256 * widths.vae * _F32 * _VAE_ENCODER_WIDTHS
    # What runs once is run on weights mapped from their file.
    stages["text_encoder"] = (
        _PROCESS
        + read * sizes.encoder_hidden * _F32 * (_ENCODER_WIDTHS + sizes.deepstack)
        + read**2 * facts.encoder_heads * _F32 * _SCORES
    )
    if facts.bidirectional:
        whole = tokens + sum(latents) + rows * columns
        stages["joint"] = _PROCESS + weights["transformer"] + whole * inner * _F32 * _STEP_WIDTHS
    else:
        first = facts.cache_bytes(tokens)
        stages["prefix"] = _PROCESS + _LAYOUT + int(first * _CACHE_SHARE)
        if references:
            own = max(latents) * inner * _F32 * _STEP_WIDTHS + facts.cache_bytes(max(latents))
            stages["prefix_image"] = _PROCESS + _LAYOUT + cache + own
        stages["step"] = _PROCESS + weights["transformer"] + cache + rows * columns * inner * _F32 * _STEP_WIDTHS
    stages["vae_decoder"] = (
        _PROCESS + int(weights["vae"] * _DECODER_WEIGHTS) + tile * sizes.features * _F32 * _DECODER_WIDTHS
    )
    return stages


def _reads(side: int, halo: int) -> list[int]:
    return [span.read_stop - span.read_start for span in spans(side, halo)]
