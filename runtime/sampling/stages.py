"""The stages of each solver on a grid of noise levels, sigma_0 to sigma_N = 0.

Latents at the noise level sigma are x = (1 - sigma) * picture + sigma * noise, and dx/dsigma = velocity. Solvers that
predict the picture integrate in lambda = log((1 - sigma) / sigma), which is infinite at both ends of the grid: there,
and in their first step, they fall back to the first order, which is Euler's method. All arithmetic is float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.loop import Stage

Stages = tuple[Stage, ...]


def euler(sigmas: NDArray[np.float32]) -> Stages:
    """Return the stages of Euler's method, x + (sigma' - sigma) * velocity.

    The difference is rounded to float32, as in diffusers' `FlowMatchEulerDiscreteScheduler`.
    """
    return tuple(
        Stage(step, float(sigma), p=0, q=1, a=1, b=float(following - sigma))
        for step, (sigma, following) in enumerate(pairwise(sigmas))
    )


def heun(sigmas: NDArray[np.float32]) -> Stages:
    """Return the stages of Heun's method: an Euler step, then half the difference of the velocities at its two ends.

    The last step, to 0, is Euler's, as in diffusers' `FlowMatchHeunDiscreteScheduler`: N steps evaluate the network
    2N - 1 times.
    """
    found: list[Stage] = []
    for stage, following in zip(euler(sigmas), sigmas[1:].tolist(), strict=True):
        if following == 0:
            found.append(stage)
            continue
        found.append(replace(stage, ends=False))
        found.append(Stage(stage.step, following, p=0, q=1, a=1, b=stage.b / 2, c=-stage.b / 2))
    return tuple(found)


def ab2(sigmas: NDArray[np.float32]) -> Stages:
    """Return the stages of the Adams-Bashforth method of second order with uneven steps. The first step is Euler's.

    With h = sigma' - sigma and r, its ratio to the step before, x' = x + h * ((1 + r/2) * v - r/2 * v1) (Hairer,
    Nørsett, Wanner, Solving Ordinary Differential Equations I, III.5).
    """
    first, *others = euler(sigmas)
    found = [first]
    for before, stage in pairwise((first, *others)):
        ratio = stage.b / before.b
        found.append(replace(stage, b=stage.b * (1 + ratio / 2), c=-stage.b * ratio / 2))
    return tuple(found)


def dpm_2m(sigmas: NDArray[np.float32]) -> Stages:
    """Return the stages of DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, Algorithm 2), midpoint form.

    The first and the last step are of first order, and so is a step after one that began at sigma 1, as in diffusers'
    `DPMSolverMultistepScheduler`.
    """
    return tuple(
        Stage(step, sigma, 1, -sigma, move.kept, move.gain + move.bend, -move.bend)
        for step, sigma, move in _moves(sigmas)
    )


def unipc(sigmas: NDArray[np.float32]) -> Stages:
    """Return the stages of UniPC of second order with B(h) = e^h - 1 (Zhao et al. 2023, arXiv:2302.04867).

    The corrector of a step needs the velocity at its end, which the next step evaluates anyway: its correction is added
    there, before the next prediction. Orders fall where `dpm_2m` lets them fall; the last step is not corrected, as in
    diffusers' `UniPCMultistepScheduler` (solver_type "bh2").
    """
    found: list[Stage] = []
    arrived: _Move | None = None
    for step, sigma, move in _moves(sigmas):
        # The predicted x becomes x + own * m + before * m1 + earlier * m2, which the next prediction starts from.
        own, before, earlier = (0.0, 0.0, 0.0) if arrived is None else arrived.correction()
        found.append(
            Stage(
                step,
                sigma,
                p=1,
                q=-sigma,
                a=move.kept,
                b=move.kept * own + move.gain + move.bend,
                c=move.kept * before - move.bend,
                d=move.kept * earlier,
            )
        )
        arrived = move
    return tuple(found)


class _Move:
    """The coefficients of a step from `sigma` to `following` that predicts the picture.

    x' = kept * x + gain * m + bend * (m - m1), with the pictures m and m1 predicted at the beginning of this step and
    of the step before.
    """

    def __init__(self, sigma: float, following: float, before: float | None) -> None:
        self.kept = following / sigma
        self.gain = 1 - self.kept
        self._width = _lambda(following) - _lambda(sigma)
        last = math.inf if before is None else _lambda(sigma) - _lambda(before)
        # r of the papers: the ratio of the step before to this one, in lambda. None for the first order.
        self._ratio = last / self._width if math.isfinite(last) and math.isfinite(self._width) else None
        self.bend = self.gain / (2 * self._ratio) if self._ratio is not None else 0.0

    def correction(self) -> tuple[float, float, float]:
        """Return the weights that correct x' by the pictures predicted at its end, its beginning and the one before.

        They solve R(h) rho = b(h) of UniPC's equation 5, with phi functions in -h. Of first order, rho is 1/2.
        """
        if self._ratio is None:
            half = self.gain / 2
            return half, -half, 0.0
        phi_1 = math.expm1(-self._width) / -self._width
        scale = math.expm1(-self._width)
        first = (phi_1 - 1) / scale
        second = 2 * ((phi_1 - 1) / -self._width - 1 / 2) / scale
        before = (first - second) / (1 + self._ratio)
        end = self.gain * (first - before)
        bend = self.gain * (before - 1 / 2) / -self._ratio  # beyond the prediction's own
        return end, -end - bend, bend


def _moves(sigmas: NDArray[np.float32]) -> Iterator[tuple[int, float, _Move]]:
    levels = sigmas.tolist()
    for step, (sigma, following) in enumerate(pairwise(levels)):
        yield step, sigma, _Move(sigma, following, levels[step - 1] if step else None)


def _lambda(sigma: float) -> float:
    """Return log((1 - sigma) / sigma), half the logarithm of the signal-to-noise ratio; infinite at 0 and 1."""
    if sigma in (0, 1):
        return math.inf if sigma == 0 else -math.inf
    return math.log1p(-sigma) - math.log(sigma)
