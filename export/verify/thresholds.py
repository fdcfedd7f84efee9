"""How far a bundle may be from the fp32 reference, by target, precision and row, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from qwen_image_engine.engines.backends import BACKENDS

TEACHER_FORCED = "teacher_forced"


@dataclass(frozen=True)
class Threshold:
    """What passes: the largest relative L2, and where it matters the least cosine.

    `over` says whether the worst step of a case or the mean over its steps is held to it.
    """

    relative_l2: float
    reason: str
    cosine: float | None = None
    over: Literal["worst", "mean"] = "worst"


_ROUNDING = Threshold(
    1e-5,
    "the same fp32 arithmetic in another order: rounding of 6e-8 grows to 1e-6 through the depth of a network, while "
    "a wrong constant, axis or weight costs 1e-3 and more",
)

_INT8 = Threshold(
    0.03,
    "each product adds 0.5% to 1% where rotations have spread the outliers, and depth adds them up: 0.6% in the text "
    "encoder and 1% in keys and values of `shapes`; a rotation or a scale that is wrong costs 30% and more",
)

_INT8_STEP = Threshold(
    0.02,
    "the mean over the schedule, at which pictures stay the same; the last step's velocity is a small "
    "difference of large terms and 3 times as far off, so the worst is reported and not held to it",
    cosine=0.9998,
    over="mean",
)


def _static(relative_l2: float, cosine: float, reason: str) -> Mapping[str, Threshold]:
    """Of a bundle whose transformer alone is quantised."""
    return {
        "text_encoder": _ROUNDING,
        "vision": _ROUNDING,
        "prefix": Threshold(2 * relative_l2, reason),
        "prefix_image": Threshold(2 * relative_l2, reason),
        "step": Threshold(relative_l2, reason, cosine=cosine, over="mean"),
        "joint": Threshold(relative_l2, reason, cosine=cosine, over="mean"),
        "vae_decoder_mid": _ROUNDING,
        "vae_decoder_up": _ROUNDING,
        "vae_encoder": _ROUNDING,
        TEACHER_FORCED: Threshold(relative_l2, reason, over="mean"),
    }


_GPU_FLOAT32 = Threshold(
    1e-4,
    "not yet measured on a GPU: float32 without TF32, in the order of cuDNN's algorithms, of which transforms of tiles "
    "lose one decimal more than direct sums",
)


def _half(relative_l2: float, reason: str) -> Mapping[str, Threshold]:
    """Of a bundle for CUDA, whose VAE alone is in float32."""
    step = Threshold(relative_l2, reason, over="mean")
    vae = dict.fromkeys(("vae_decoder_mid", "vae_decoder_up", "vae_encoder"), _GPU_FLOAT32)
    networks = dict.fromkeys(("text_encoder", "vision", "prefix", "prefix_image"), Threshold(relative_l2, reason))
    return {**networks, **vae, "step": step, "joint": step, TEACHER_FORCED: replace(step, relative_l2=2 * relative_l2)}


_TENSORRT_BF16 = Threshold(
    0.04,
    "not yet measured on a GPU: the reference in bf16 on a CPU is 0.1% to 1.4% off float32 by component of `shapes`, "
    "its steps 1.1% in the mean over a schedule, and 1.2% in two blocks of the released width "
    "(benchmarks/results/speed.json); three times that is allowed, a wrong weight or axis costs 30% and more",
)


def _tensorrt(twin: Mapping[str, Threshold]) -> Mapping[str, Threshold]:
    """Of a bundle with static scales for a GPU: those of its twin in float32, and 16 bits where that is exact."""
    return {
        row: _TENSORRT_BF16
        if item is _ROUNDING
        else replace(
            item,
            relative_l2=item.relative_l2 + _BF16,
            cosine=None,
            reason=f"not yet measured on a GPU: the twin's, and 16 bits between the products. {item.reason}",
        )
        for row, item in twin.items()
    }


_BF16 = 0.03
"""What bf16 between the products may add, on an engine that computes so: 0.4% a product, through depth;
time features and angles come in float32 (rounded, they would cost 37%)."""

_TWIN_FP8 = _static(
    0.06,
    0.997,
    "codes of 3 bits of mantissa are 2% off each and depth adds them up: 4% to 5% of `shapes` with every linear in "
    "FP8, over the few steps taken here, of which the last is the farthest off; a wrong scale costs 30%",
)

_TWIN_INT8 = _static(
    0.06,
    0.997,
    "one scale for all channels of a tensor, which smoothing brings together: 3% to 4% of `shapes` over the few "
    "steps taken here; a wrong scale costs 30%",
)

THRESHOLDS: Mapping[tuple[str, str], Mapping[str, Threshold]] = {
    ("cpu", "fp32"): {
        "text_encoder": _ROUNDING,
        "vision": _ROUNDING,
        "prefix": _ROUNDING,
        "prefix_image": _ROUNDING,
        "step": _ROUNDING,
        "joint": _ROUNDING,
        "vae_decoder_mid": _ROUNDING,
        "vae_decoder_up": _ROUNDING,
        "vae_encoder": _ROUNDING,
        TEACHER_FORCED: Threshold(
            1e-4,
            "the bundle's own text encoder, prefix and step in a row: their roundings add up, and the velocity at low "
            "sigma is a small difference of large terms",
        ),
    },
    ("cpu", "int8"): {
        "text_encoder": _INT8,
        "vision": _ROUNDING,
        "prefix": _INT8,
        "prefix_image": _INT8,
        "step": _INT8_STEP,
        "joint": _INT8_STEP,
        "vae_decoder_mid": _ROUNDING,
        "vae_decoder_up": _ROUNDING,
        "vae_encoder": _ROUNDING,
        TEACHER_FORCED: Threshold(
            0.02, "as for the step: errors of the encoder and of keys and values hardly show beside it", over="mean"
        ),
    },
    ("cuda", "bf16"): _half(
        0.04,
        "not yet measured on a GPU: bf16 is 0.4% off a product and depth adds them up, to 1.2% in two blocks of the "
        "released width on a CPU (benchmarks/results/speed.json); three times that is allowed, a wrong weight or axis "
        "costs 30% and more",
    ),
    ("cuda", "fp16"): _half(
        0.01,
        "not yet measured on a GPU: fp16 rounds 8 times finer than bf16, which may be 4% off; values beyond 65504 "
        "would not be finite and are refused",
    ),
    ("cuda", "fp8"): {
        **dict.fromkeys(("vae_decoder_mid", "vae_decoder_up", "vae_encoder"), _GPU_FLOAT32),
        **{row: item for row, item in _tensorrt(_TWIN_FP8).items() if not row.startswith("vae_")},
    },
    ("tensorrt", "bf16"): {
        **dict.fromkeys(_TWIN_FP8, _TENSORRT_BF16),
        "step": replace(_TENSORRT_BF16, over="mean"),
        "joint": replace(_TENSORRT_BF16, over="mean"),
        TEACHER_FORCED: replace(_TENSORRT_BF16, relative_l2=2 * _TENSORRT_BF16.relative_l2, over="mean"),
    },
    ("tensorrt", "fp8"): _tensorrt(_TWIN_FP8),
    ("tensorrt", "int8"): _tensorrt(_TWIN_INT8),
    ("tensorrt-twin", "fp8"): _TWIN_FP8,
    ("tensorrt-twin", "int8"): _TWIN_INT8,
}
"""Target and precision of the bundle, then row of the table, to its threshold."""


def thresholds(target: str, precision: str, engine: str) -> Mapping[str, Threshold] | None:
    """Those of a bundle on an engine, None where it has none."""
    found = THRESHOLDS.get((target, precision))
    if found is None or BACKENDS[engine].computes is None:
        return found
    return {
        row: replace(item, relative_l2=item.relative_l2 + _BF16, cosine=None, reason=f"{item.reason}; bf16")
        for row, item in found.items()
    }
