"""Rules that give linears a precision, as data, and the named sets of rules for targets."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from dataclasses import dataclass

HIGH = "high"
"""Precision of linears that are not quantised: the precision of all other layers in the recipe."""

QUANTISED = ("int8", "fp8")


@dataclass(frozen=True)
class Rule:
    """The rule that linears whose names match the glob pattern `linears` have `precision`: "int8", "fp8" or "high"."""

    linears: str
    precision: str


@dataclass(frozen=True)
class Quantisation:
    """The quantisation of a recipe's networks.

    Attributes:
        networks: networks with quantised linears.
        rules: rules in order. The first rule that matches a linear gives its precision. A linear without a matching
            rule stays high.
        static: whether activations have one scale a tensor from calibration; otherwise they have one scale a token,
            computed at run time.
        largest_rotation: largest number of channels that are rotated together; 1 for no rotation.
        skip_blocks: blocks of the transformer whose linears stay high, whatever the rules say.
        fp8_attention: whether queries, keys, values and probabilities of the transformer are FP8.
    """

    networks: Collection[str]
    rules: tuple[Rule, ...]
    static: bool = False
    largest_rotation: int = 1
    skip_blocks: tuple[int, ...] = ()
    fp8_attention: bool = False

    def rule(self, linear: str) -> Rule:
        """Return the rule that decides on the linear of this name."""
        matching = (rule for rule in self.rules if fnmatch.fnmatchcase(linear, rule.linears))
        return next(matching, Rule(linear, HIGH))

    def precision(self, linear: str) -> str:
        """Return the precision of the linear of this name by the rules alone; `skip_blocks` does not count."""
        return self.rule(linear).precision

    def precisions(self) -> set[str]:
        """Return the 8-bit precisions in the rules."""
        return {rule.precision for rule in self.rules} - {HIGH}


# benchmarks/quantisation/rotations.py: on outliers the step from 16 channels to 64 takes a third off the error, that to
# 256 little more, while a rotation multiplies each channel by as many as are rotated together.
_LARGEST_ROTATION = 64


INT8_PER_TOKEN = Quantisation(("transformer", "text_encoder"), (Rule("*", "int8"),), largest_rotation=_LARGEST_ROTATION)
"""Every linear of both networks in INT8, with one scale a token that is computed at run time."""


def _static(precision: str) -> Quantisation:
    """Return the rules for static scales. The text encoder stays unquantised, because FP8 costs it 17% to 20%."""
    return Quantisation(("transformer",), (Rule("*", precision),), static=True)


FP8_STATIC = _static("fp8")
"""Every linear of the transformer in FP8, with scales from calibration."""

INT8_STATIC = _static("int8")
"""Every linear of the transformer in INT8, with scales from calibration."""
