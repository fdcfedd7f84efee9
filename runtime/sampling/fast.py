"""The preset of `run --fast`: the solver and the number of steps that were measured against Euler's 40."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A solver and a number of steps that docs/fewer-steps.md has figures for.

    Attributes:
        solver: name of the solver.
        steps: number of its steps.
    """

    solver: str
    steps: int


FAST = Preset("ab2", 14)
