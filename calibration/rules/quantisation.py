"""Rules that give linears a precision, as data, and the named sets of them that targets have."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from dataclasses import dataclass

HIGH = "high"
"""Not quantised: the precision of everything else in the recipe."""

QUANTISED = ("int8", "fp8")


@dataclass(frozen=True)
class Rule:
    """Linears whose names match the glob pattern `linears` have `precision`: "int8", "fp8" or "high"."""

    linears: str
    precision: str


@dataclass(frozen=True)
class Quantisation:
    """Of the networks of a recipe.

    Attributes:
        networks: those with quantised linears.
        rules: the first that matches a linear gives its precision; a linear that none matches stays high.
        static: whether activations have one scale a tensor from calibration; else one a token, found as it runs.
        largest_rotation: channels that are rotated together, at most; 1 for none.
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
        """That decides on the linear of that name."""
        matching = (rule for rule in self.rules if fnmatch.fnmatchcase(linear, rule.linears))
        return next(matching, Rule(linear, HIGH))

    def precision(self, linear: str) -> str:
        """Of the linear of that name, by the rules alone."""
        return self.rule(linear).precision

    def precisions(self) -> set[str]:
        """Those that the rules quantise to."""
        return {rule.precision for rule in self.rules} - {HIGH}


# benchmarks/quantisation/rotations.py: on outliers the step from 16 channels to 64 takes a third off the error, that to
# 256 little more, while a rotation multiplies each channel by as many as are rotated together.
_LARGEST_ROTATION = 64


INT8_PER_TOKEN = Quantisation(("transformer", "text_encoder"), (Rule("*", "int8"),), largest_rotation=_LARGEST_ROTATION)
"""Every linear of both networks in INT8, with one scale a token that is found as the graph runs."""


def _static(precision: str) -> Quantisation:
    """Return the rules for static scales; the text encoder stays as it is: FP8 costs it 17% to 20%."""
    return Quantisation(("transformer",), (Rule("*", precision),), static=True)


FP8_STATIC = _static("fp8")
"""Every linear of the transformer in FP8, with scales from calibration."""

INT8_STATIC = _static("int8")
"""Every linear of the transformer in INT8, with scales from calibration."""
