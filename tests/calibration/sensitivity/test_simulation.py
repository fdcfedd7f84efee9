"""Simulated linears compute what exported graphs do, each alone or all together, and leave no trace."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen_image_engine.calibration.observe.calibrate import calibrate
from qwen_image_engine.calibration.observe.record import Calibration
from qwen_image_engine.calibration.observe.request import Request
from qwen_image_engine.calibration.quantise.network import quantised_network
from qwen_image_engine.calibration.quantise.static_input import StaticInput
from qwen_image_engine.calibration.sensitivity.simulation import Simulation
from qwen_image_engine.calibration.sensitivity.teacher_forcing import Trajectory, record
from qwen_image_engine.engines.backends import load_engine
from qwen_image_engine.engines.core.engine import Array
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.targets import TARGETS
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import load_network
from qwen_image_engine.reference.networks.transformer import Transformer
from qwen_image_engine.runtime.bundle.manifest import read_manifest

PROMPTS = ["a red circle", "a blue square"]
SETTINGS: dict[str, Any] = {"steps": 2, "sizes": [(64, 64)]}
LINEAR = "transformer_blocks.1.img_mlp.out"


@pytest.fixture(scope="module")
def planted(with_outliers: Callable[[str], tuple[Path, Path]]) -> Path:
    """A checkpoint whose pairs have something to smooth and to equalise."""
    return with_outliers("narrow")[1]


@pytest.fixture(scope="module")
def calibration(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "calibration"
    calibrate(planted, folder, PROMPTS, **SETTINGS)
    return folder


@pytest.fixture(scope="module")
def simulation(planted: Path, calibration: Path) -> Callable[..., tuple[Simulation, list[str]]]:
    """`simulation(target, precision, dtype=…) -> (simulation, linears)`."""
    checkpoint = Checkpoint.open(planted)

    def make(target: str, precision: str, dtype: torch.dtype = torch.float32) -> tuple[Simulation, list[str]]:
        network = load_network(checkpoint, "transformer", dtype)
        assert isinstance(network, Transformer)
        found = Calibration.open(calibration, checkpoint)
        quantised = quantised_network(checkpoint, "transformer", TARGETS[target, precision].quantisation, found)
        return Simulation(checkpoint, network, quantised), list(quantised.layers)

    return make


@pytest.fixture(scope="module")
def trajectory(planted: Path) -> Trajectory:
    """The calibration's first, whose last step is run."""
    checkpoint = Checkpoint.open(planted)
    options: dict[str, Any] = {"guidance": 1.0, "negative_prompt": "", "seed": 0, "device": "cpu", "dtype": "fp32"}
    request = Request.of(checkpoint, PROMPTS[:1], **SETTINGS, **options)
    network = load_network(checkpoint, "transformer")
    assert isinstance(network, Transformer)
    return record(request, network)[0]


def run(simulation: Simulation, trajectory: Trajectory, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    states, *angles = trajectory.prefix
    latents, features = trajectory.steps[-1]
    with torch.inference_mode():
        cache = simulation.prefix(states.to(dtype), *angles)
        return simulation.step(latents.to(dtype), features, *trajectory.rotary, cache)


def exported(folder: Path, trajectory: Trajectory) -> Array:
    """Velocity by the two graphs of a bundle, one after the other."""
    components = read_manifest(folder).components
    prefix, step = (
        load_engine("onnxruntime", folder / components[name].model, components[name].contract)
        for name in ("prefix", "step")
    )
    states, *text = (value.numpy() for value in trajectory.prefix)
    latents, features = (value.numpy() for value in trajectory.steps[-1])
    cos, sin = (value.numpy() for value in trajectory.rotary)
    cache = prefix.run({"text_states": states, "cos": text[0], "sin": text[1]})
    return step.run({"latents": latents, "time_features": features, "cos": cos, "sin": sin, **cache})["velocity"]


@pytest.mark.parametrize(("target", "precision"), [("cpu", "int8"), ("tensorrt", "fp8"), ("tensorrt", "int8")])
def test_agrees_with_the_exported_graphs(
    planted: Path,
    calibration: Path,
    simulation: Callable[..., tuple[Simulation, list[str]]],
    trajectory: Trajectory,
    trace_once: None,
    tmp_path: Path,
    target: str,
    precision: str,
) -> None:
    if target == "cpu":
        export_bundle(planted, tmp_path / "bundle", precision=precision)
    else:
        export_bundle(
            planted,
            tmp_path / "bundle",
            target="tensorrt-twin",
            precision=precision,
            calibration=calibration,
            without=["vision"],
        )
    found = exported(tmp_path / "bundle", trajectory)
    simulated, linears = simulation(target, precision)
    plain = run(simulated, trajectory).numpy()
    with simulated.quantised(linears):
        expected = run(simulated, trajectory).numpy()
    error = np.linalg.norm(expected - plain)
    assert error > 1e-3 * np.linalg.norm(plain)
    # Sums in another order move a value over the edge between two codes here and there.
    assert np.linalg.norm(found - expected) < 0.1 * error


@pytest.mark.parametrize(("target", "precision"), [("cpu", "int8"), ("tensorrt", "fp8"), ("tensorrt", "int8")])
def test_network_is_restored(
    simulation: Callable[..., tuple[Simulation, list[str]]],
    trajectory: Trajectory,
    target: str,
    precision: str,
) -> None:
    simulated, linears = simulation(target, precision)
    plain = run(simulated, trajectory)
    with simulated.quantised([LINEAR]):
        alone = run(simulated, trajectory)

    def interrupted() -> None:
        with simulated.quantised(linears):
            assert not torch.equal(run(simulated, trajectory), alone)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not torch.equal(alone, plain)
    assert torch.equal(run(simulated, trajectory), plain)


def test_fp8_alone_is_rounding_of_both_operands(
    planted: Path,
    calibration: Path,
    simulation: Callable[..., tuple[Simulation, list[str]]],
    trajectory: Trajectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StaticInput, "error_feedback", lambda item: None)
    checkpoint = Checkpoint.open(planted)
    network = load_network(checkpoint, "transformer")
    assert isinstance(network, Transformer)
    linear = network.get_submodule(LINEAR)
    seen = Calibration.open(calibration, checkpoint).components

    def rounded(values: torch.Tensor, largest: float) -> torch.Tensor:
        scale = np.float32(float(torch.tensor(largest / 448).bfloat16()))
        return torch.from_numpy(np.clip(values.numpy() / scale, -448, 448)).to(torch.float8_e4m3fn).float() * scale

    component = "prefix"
    linear.weight = torch.nn.Parameter(rounded(linear.weight, float(linear.weight.abs().max())), requires_grad=False)

    def pre_hook(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> torch.Tensor:
        statistics = seen[component].get(LINEAR)  # the prefix's last block has none
        return (
            arguments[0] if statistics is None else rounded(arguments[0], 1.1 * float(statistics.channel_absmax.max()))
        )

    linear.register_forward_pre_hook(pre_hook)
    with torch.inference_mode():
        cache = network.prefix(*trajectory.prefix)
        component = "step"
        expected = network.step(*trajectory.steps[-1], *trajectory.rotary, cache)
    simulated, _ = simulation("tensorrt", "fp8")
    with simulated.quantised([LINEAR]):
        torch.testing.assert_close(run(simulated, trajectory), expected)


def test_dtype_of_the_network(simulation: Callable[..., tuple[Simulation, list[str]]], trajectory: Trajectory) -> None:
    simulated, linears = simulation("tensorrt", "int8", torch.bfloat16)
    plain = run(simulated, trajectory, torch.bfloat16)
    with simulated.quantised(linears):
        found = run(simulated, trajectory, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert 0 < (found - plain).norm() < 0.2 * plain.norm()
