"""Named sets of thresholds: how far a bundle may be from the fp32 reference in each row of `verify`, and why.

Each set belongs to one row of the table of targets. The rows of a set are the components and the teacher-forced steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from qwen_image_engine.engines.backends import BACKENDS
from qwen_image_engine.engines.core.components import COMPONENTS

TEACHER_FORCED = "teacher_forced"


@dataclass(frozen=True)
class Threshold:
    """The limits of one row of `verify`.

    Attributes:
        relative_l2: largest relative L2 that passes.
        reason: reason for the number.
        cosine: least cosine that passes; None if any passes.
        over: figure that is compared: the worst step of a case, or the mean over the steps.
    """

    relative_l2: float
    reason: str
    cosine: float | None = None
    over: Literal["worst", "mean"] = "worst"


Thresholds = Mapping[str, Threshold]
"""Thresholds by row: a component's name, or `TEACHER_FORCED`."""


def _rows(networks: Mapping[str, Threshold], step: Threshold, forced: Threshold) -> Thresholds:
    """Return the thresholds of components by network, `step` for each step component, and `forced`."""
    rows = {row.name: step if row.runs == "step" else networks[row.network] for row in COMPONENTS.values()}
    return {**rows, TEACHER_FORCED: forced}


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


def _static(relative_l2: float, cosine: float, reason: str) -> Thresholds:
    """Return the thresholds of a bundle whose transformer alone is quantised."""
    networks = dict.fromkeys(("text_encoder", "vision", "vae"), _ROUNDING)
    return _rows(
        networks | {"transformer": Threshold(2 * relative_l2, reason)},
        step=Threshold(relative_l2, reason, cosine=cosine, over="mean"),
        forced=Threshold(relative_l2, reason, over="mean"),
    )


_GPU_FLOAT32 = Threshold(
    1e-4,
    "not yet measured on a GPU: float32 without TF32, in the order of cuDNN's algorithms, of which transforms of tiles "
    "lose one decimal more than direct sums",
)


def _half(relative_l2: float, reason: str) -> Thresholds:
    """Return the thresholds of a bundle for CUDA, whose VAE alone is in float32."""
    networks = dict.fromkeys(("text_encoder", "vision", "transformer"), Threshold(relative_l2, reason))
    step = Threshold(relative_l2, reason, over="mean")
    return _rows(networks | {"vae": _GPU_FLOAT32}, step, forced=replace(step, relative_l2=2 * relative_l2))


_BF16 = 0.03
"""Relative L2 that bf16 between the products may add on an engine that computes in bf16.

Each product adds 0.4%, through depth. Time features and angles come in float32. Rounded, they would cost 37%.
"""

_TENSORRT_BF16 = Threshold(
    0.04,
    "not yet measured on a GPU: the reference in bf16 on a CPU is 0.1% to 1.4% off float32 by component of `shapes`, "
    "its steps 1.1% in the mean over a schedule, and 1.2% in two blocks of the released width "
    "(benchmarks/results/speed.json); three times that is allowed, a wrong weight or axis costs 30% and more",
)


def _tensorrt(twin: Thresholds) -> Thresholds:
    """Return the thresholds of a bundle with static scales for a GPU.

    They are the thresholds of the float32 twin plus the rounding of 16 bits. A row in which the twin is exact has the
    threshold of 16 bits alone.
    """
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


TWIN_FP8 = _static(
    0.06,
    0.997,
    "codes of 3 bits of mantissa are 2% off each and depth adds them up: 4% to 5% of `shapes` with every linear in "
    "FP8, over the few steps taken here, of which the last is the farthest off; a wrong scale costs 30%",
)

TWIN_INT8 = _static(
    0.06,
    0.997,
    "one scale for all channels of a tensor, which smoothing brings together: 3% to 4% of `shapes` over the few "
    "steps taken here; a wrong scale costs 30%",
)

CPU_FP32 = _rows(
    dict.fromkeys(("text_encoder", "vision", "transformer", "vae"), _ROUNDING),
    step=_ROUNDING,
    forced=Threshold(
        1e-4,
        "the bundle's own text encoder, prefix and step in a row: their roundings add up, and the velocity at low "
        "sigma is a small difference of large terms",
    ),
)

CPU_INT8 = _rows(
    {"text_encoder": _INT8, "vision": _ROUNDING, "transformer": _INT8, "vae": _ROUNDING},
    step=_INT8_STEP,
    forced=Threshold(
        0.02, "as for the step: errors of the encoder and of keys and values hardly show beside it", over="mean"
    ),
)

CUDA_BF16 = _half(
    0.04,
    "not yet measured on a GPU: bf16 is 0.4% off a product and depth adds them up, to 1.2% in two blocks of the "
    "released width on a CPU (benchmarks/results/speed.json); three times that is allowed, a wrong weight or axis "
    "costs 30% and more",
)

CUDA_FP16 = _half(
    0.01,
    "not yet measured on a GPU: fp16 rounds 8 times finer than bf16, which may be 4% off; values beyond 65504 "
    "would not be finite and are refused",
)

TENSORRT_FP8 = _tensorrt(TWIN_FP8)

TENSORRT_INT8 = _tensorrt(TWIN_INT8)

CUDA_FP8: Thresholds = {
    **TENSORRT_FP8,
    **{row.name: _GPU_FLOAT32 for row in COMPONENTS.values() if row.network == "vae"},
}

TENSORRT_BF16 = _rows(
    dict.fromkeys(("text_encoder", "vision", "transformer", "vae"), _TENSORRT_BF16),
    step=replace(_TENSORRT_BF16, over="mean"),
    forced=replace(_TENSORRT_BF16, relative_l2=2 * _TENSORRT_BF16.relative_l2, over="mean"),
)


def on_engine(rows: Thresholds, engine: str) -> Thresholds:
    """Return the thresholds of a bundle on an engine, wider if the engine computes in bf16 and the graphs do not."""
    if BACKENDS[engine].computes is None:
        return rows
    return {
        row: replace(item, relative_l2=item.relative_l2 + _BF16, cosine=None, reason=f"{item.reason}; bf16")
        for row, item in rows.items()
    }
