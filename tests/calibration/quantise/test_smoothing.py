"""SmoothQuant's scales by their definition, and the chosen alpha by the error that it is meant to make least."""

from functools import partial

import pytest
import torch
from torch import Tensor

from qwen_image_engine.calibration.observe.statistics import InputStatistics
from qwen_image_engine.calibration.quantise.smoothing import ALPHAS, best_smoothing, smoothing_scales

ROWS, CHANNELS, OUTPUTS = 512, 96, 64


def statistics(x: Tensor) -> InputStatistics:
    return InputStatistics(
        x.abs().amax(dim=0), x.square().mean(dim=0), torch.zeros(4), x.abs().amax()[None], torch.empty(0, 0, 0)
    )


def through_int8(values: Tensor, largest: Tensor) -> Tensor:
    return (values / (largest / 127)).round().clamp(-127, 127) * (largest / 127)


def real_error(x: Tensor, weight: Tensor, scales: Tensor) -> float:
    """Error of the product with one scale for the activations and one a row of the weight."""
    smoothed, rescaled = x / scales, weight * scales
    product = (
        through_int8(smoothed, smoothed.abs().max())
        @ through_int8(rescaled, rescaled.abs().amax(dim=1, keepdim=True)).T
    )
    exact = x @ weight.T
    return float((product - exact).norm() / exact.norm())


def outliers(seed: int, factor: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, CHANNELS, generator=generator)
    x[:, ::32] *= factor
    return x, torch.randn(OUTPUTS, CHANNELS, generator=generator)


def test_scales_are_powers_of_two_within_half_an_octave_of_the_definition() -> None:
    absmax, weight = torch.rand(CHANNELS) * 50, torch.rand(CHANNELS)
    scales = smoothing_scales(absmax, weight, 0.7)
    exact = absmax**0.7 / weight**0.3
    assert (torch.frexp(scales).mantissa == 0.5).all()
    assert ((scales / exact).log2().abs() <= 0.5 + 1e-4).all()


def test_channels_that_either_side_never_uses_are_left_alone() -> None:
    scales = smoothing_scales(torch.tensor([0.0, 3.0, 8.0]), torch.tensor([1.0, 0.0, 0.5]), 0.5)
    assert scales.tolist() == [1.0, 1.0, 4.0]


@pytest.mark.parametrize("factor", [1.0, 8.0, 60.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_chosen_alpha_is_near_the_best_of_all(seed: int, factor: float) -> None:
    x, weight = outliers(seed, factor)
    chosen = best_smoothing([statistics(x)], [partial(iter, [weight[:20], weight[20:]])])
    by_alpha = {
        alpha: real_error(x, weight, smoothing_scales(x.abs().amax(dim=0), weight.abs().amax(dim=0), alpha))
        for alpha in ALPHAS
    }
    assert chosen.alpha in ALPHAS
    assert real_error(x, weight, chosen.scales) <= 1.15 * min(by_alpha.values())


def test_outliers_are_smoothed_away() -> None:
    x, weight = outliers(0, 60.0)
    chosen = best_smoothing([statistics(x)], [partial(iter, [weight])])
    assert real_error(x, weight, chosen.scales) < 0.3 * real_error(x, weight, torch.ones(CHANNELS))


def test_an_input_that_two_components_have_is_smoothed_for_both() -> None:
    x, weight = outliers(0, 60.0)
    other = x.roll(1, dims=1)  # outliers in other channels
    chosen = best_smoothing([statistics(x), statistics(other)], [partial(iter, [weight])])
    for rows in (x, other):
        assert real_error(rows, weight, chosen.scales) < 0.5 * real_error(rows, weight, torch.ones(CHANNELS))
