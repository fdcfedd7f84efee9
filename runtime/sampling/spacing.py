"""Spacings: named ways of placing the noise levels between the first and the last of a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import UsageError

_RHO = 7.0
"""The exponent of Karras et al. 2022 (arXiv:2206.00364), equation 5."""
_BETA = 0.6
"""Both parameters of the beta distribution of Lee et al. 2024 (arXiv:2407.12173)."""

Levels = NDArray[np.float64]

Spacing = Sequence[float] | str | None
"""Noise levels that a caller chooses: a list without the final 0, the name of a spacing, or None for the checkpoint's
own."""

ChosenLevels = tuple[float, ...] | str | None
"""A `Spacing` as settings and records hold it: None for "model" too."""


def chosen_levels(spacing: Spacing) -> ChosenLevels:
    """Return a caller's choice in the form that is kept and compared."""
    if spacing is None or spacing == "model":
        return None
    return spacing if isinstance(spacing, str) else tuple(float(level) for level in spacing)


def levels_text(levels: Sequence[float] | str) -> str:
    """Return levels as the flag `--sigmas` takes them, which reads the same numbers back."""
    if isinstance(levels, str):
        return levels
    short = ((level, f"{level:g}") for level in levels)
    return ",".join(text if float(text) == level else repr(float(level)) for level, text in short)


def _linear(first: float, last: float, steps: int) -> Levels:
    return np.linspace(first, last, steps)


def _karras(first: float, last: float, steps: int) -> Levels:
    ramp = np.linspace(first ** (1 / _RHO), last ** (1 / _RHO), steps)
    return np.asarray(ramp**_RHO)


def _beta(first: float, last: float, steps: int) -> Levels:
    shares = np.array([beta_quantile(share, _BETA) for share in np.linspace(1.0, 0.0, steps)])
    return last + shares * (first - last)


SPACINGS: Mapping[str, Callable[[float, float, int], Levels] | None] = {
    "model": None,
    "linear": _linear,
    "karras": _karras,
    "beta": _beta,
}
"""Functions of the first level, the last and the number of levels, by name. "model" leaves the levels as they are."""


def spaced(name: str, levels: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return as many levels (N,) between the first and the last of `levels`, placed by a spacing.

    They equal those of diffusers' `FlowMatchEulerDiscreteScheduler` with `use_karras_sigmas` or `use_beta_sigmas`.

    Raises:
        UsageError: no spacing has this name.
    """
    if name not in SPACINGS:
        raise UsageError(f"sigmas {name!r}: expected numbers, or one of {', '.join(SPACINGS)}")
    place = SPACINGS[name]
    if place is None:
        return levels
    found = place(float(levels[0]), float(levels[-1]), len(levels))
    found[0], found[-1] = levels[0], levels[-1]  # not an ulp above 1
    return found


def beta_quantile(share: float, parameter: float) -> float:
    """Return the x below which a symmetric beta distribution has `share` of its mass, to 1e-12, by bisection."""
    if share > 1 / 2:
        return 1.0 - beta_quantile(1.0 - share, parameter)
    if share == 1 / 2:
        return 0.5
    whole = 2 * _half_mass(0.5, parameter)
    low, high = 0.0, 0.5
    while high - low > 1e-13:
        middle = (low + high) / 2
        low, high = (middle, high) if _half_mass(middle, parameter) < share * whole else (low, middle)
    return low


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)


def _half_mass(x: float, parameter: float) -> float:
    """Return the integral of (t (1 - t))^(parameter - 1) from 0 to x, at most 1/2, by Gauss-Legendre.

    The singularity at 0 goes with the substitution u = t^parameter.
    """
    top = x**parameter
    u = top * (_NODES + 1) / 2
    values = (1 - u ** (1 / parameter)) ** (parameter - 1)
    return math.fsum(values * _WEIGHTS) * top / 2 / parameter
