"""How far a bundle may be from the fp32 reference, by precision and row, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TEACHER_FORCED = "teacher_forced"


@dataclass(frozen=True)
class Threshold:
    """The largest relative L2 that passes."""

    relative_l2: float
    reason: str


_ROUNDING = Threshold(
    1e-5,
    "the same fp32 arithmetic in another order: rounding of 6e-8 grows to 1e-6 through the depth of a network, while "
    "a wrong constant, axis or weight costs 1e-3 and more",
)

THRESHOLDS: Mapping[str, Mapping[str, Threshold]] = {
    "fp32": {
        "text_encoder": _ROUNDING,
        "prefix": _ROUNDING,
        "step": _ROUNDING,
        "vae_decoder": _ROUNDING,
        "vae_encoder": _ROUNDING,
        TEACHER_FORCED: Threshold(
            1e-4,
            "the bundle's own text encoder, prefix and step in a row: their roundings add up, and the velocity at low "
            "sigma is a small difference of large terms",
        ),
    }
}
"""Precision of the bundle, then row of the table, to its threshold."""
