"""Statistics of an activation against the same computed directly."""

import pytest
import torch

from qwen_image_engine.calibration.observe.statistics import PERCENTILES, RESOLUTION, InputSums
from qwen_image_engine.runtime.system.json_schema import SchemaError

CPU = torch.device("cpu")


def batches(count: int, channels: int, seed: int = 0) -> list[torch.Tensor]:
    """Runs of different lengths, heavy-tailed, channels of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randn(channels, generator=generator).exp()
    return [
        torch.randn(1 + run % 2, 37 + run, channels, generator=generator).mul(1.5).sinh() * sizes
        for run in range(count)
    ]


def test_statistics_are_those_of_all_rows() -> None:
    runs = batches(6, 48)
    sums = InputSums.empty(48, 3, CPU)
    for index, values in enumerate(runs):
        sums.add(values, index // 2)  # two branches a step
    found = sums.statistics()
    rows = torch.cat([values.flatten(0, 1) for values in runs]).double()
    assert torch.equal(found.channel_absmax, rows.abs().amax(dim=0).float())
    # float32 sums within a run, a last bit or two.
    torch.testing.assert_close(found.channel_mean_square, rows.square().mean(dim=0).float(), rtol=1e-6, atol=0)
    expected = [max(float(values.abs().max()) for values in runs[step * 2 : step * 2 + 2]) for step in range(3)]
    assert found.absmax_by_step.tolist() == expected
    assert {tensor.dtype for tensor in vars(found).values()} == {torch.float32}


@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e4])
def test_percentiles_are_within_the_resolution(scale: float) -> None:
    sums = InputSums.empty(64, 1, CPU)
    runs = [values * scale for values in batches(40, 64)]
    for values in runs:
        sums.add(values, 0)
    magnitudes = torch.cat([values.flatten() for values in runs]).abs()
    ranks = torch.tensor(PERCENTILES) / 100
    below, above = (torch.quantile(magnitudes, ranks, interpolation=kind) for kind in ("lower", "higher"))
    found = sums.statistics().percentiles
    assert (found >= below * (1 - RESOLUTION)).all()
    assert (found <= above * (1 + RESOLUTION)).all()
    assert found.diff().min() >= 0
    assert found[-1] <= magnitudes.max()


def test_percentiles_of_hardly_used_and_of_huge_values() -> None:
    sums = InputSums.empty(10, 1, CPU)
    values = torch.zeros(1000, 10)
    values[3, 4] = 1e30  # beyond the last bin
    values[5, 5] = -1e-30  # before the first
    sums.add(values, 0)
    found = sums.statistics().percentiles
    assert found[:3].tolist() == [0, 0, 0]
    assert torch.isfinite(found).all()
    assert found[3] <= 1e30


def test_bf16_counts_as_it_is() -> None:
    (values,) = (run.bfloat16() for run in batches(1, 16))
    sums = InputSums.empty(16, 1, CPU)
    sums.add(values, 0)
    found = sums.statistics()
    assert torch.equal(found.channel_absmax, values.float().abs().flatten(0, 1).amax(dim=0))
    torch.testing.assert_close(
        found.channel_mean_square, values.double().square().flatten(0, 1).mean(dim=0).float(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_whole(wrong: float) -> None:
    sums = InputSums.empty(8, 1, CPU)
    sums.add(torch.ones(2, 3, 8), 0)
    before = {name: tensor.clone() for name, tensor in sums.tensors().items()}
    values = torch.ones(2, 3, 8)
    values[1, 2, 3:5] = wrong
    with pytest.raises(FloatingPointError, match=r"^2 of 48 values$"):
        sums.add(values, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sums.tensors().items())


def test_values_are_left_as_they_are() -> None:
    values = -torch.ones(1, 3, 8)
    InputSums.empty(8, 1, CPU).add(values, 0)
    assert torch.equal(values, -torch.ones(1, 3, 8))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("channel_absmax", torch.tensor([1.0, float("nan"), 1.0, 1.0])),
        ("channel_absmax", torch.ones(3)),
        ("channel_absmax", torch.ones(4, dtype=torch.float64)),
        ("square_sum", -torch.ones(4, dtype=torch.float64)),
        ("histogram", torch.zeros(7, dtype=torch.int64)),
        ("gram_sum", torch.zeros(3, 2, 2)),
        ("gram_sum", torch.zeros(2, 2, 1)),
        ("rows", torch.tensor(-1)),
        ("rows", torch.zeros(2, dtype=torch.int64)),
        ("rows", None),
    ],
)
def test_sums_of_a_file_are_checked(name: str, values: torch.Tensor | None) -> None:
    sums = InputSums.empty(4, 2, torch.device("cpu"), 2).tensors()
    assert InputSums.read("step, x", sums).fits(InputSums.empty(4, 2, torch.device("cpu"), 2))
    assert not InputSums.read("step, x", sums).fits(InputSums.empty(4, 3, torch.device("cpu"), 2))
    damaged = {key: item for key, item in {**sums, name: values}.items() if item is not None}
    with pytest.raises(SchemaError, match="step, x: "):
        InputSums.read("step, x", damaged)
