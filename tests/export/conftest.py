"""Bundles of random checkpoints, and inputs for their graphs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from qwen_image_engine.calibration.observe.calibrate import calibrate
from qwen_image_engine.engines.core.contract import Contract, split_axis
from qwen_image_engine.engines.core.engine import Array
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.targets import TARGETS
from tests.support.shared import SharedFolders

ROWS_OF_POSITIONS = 36
"""Of the vision tower's table in the configuration that has fewest."""


@pytest.fixture(scope="session", autouse=True)
def _trace_once(trace_once: None) -> None:
    """For every export of these tests, not only that of `exported`."""


@pytest.fixture(scope="session")
def bundle(random_checkpoint: Callable[..., Path], exported: Callable[..., Path]) -> Callable[[str], tuple[Path, Path]]:
    """`bundle(name) -> (checkpoint, bundle)` in fp32 with copied weights; read-only."""
    return lambda name: (random_checkpoint(name), exported(name))


@pytest.fixture
def random_inputs() -> Callable[..., dict[str, Array]]:
    """`random_inputs(contract, batch=…, …)`: arrays of a contract's inputs; cos and sin are of the same angles."""

    def inputs(contract: Contract, **sizes: int) -> dict[str, Array]:
        rng = np.random.default_rng(sum(sizes.values()))
        arrays: dict[str, Any] = {}
        for spec in contract.inputs:
            shape = [axis if isinstance(axis, int) else _size(axis, sizes) for axis in spec.shape]
            if spec.dtype == "int64":
                arrays[spec.name] = rng.integers(0, ROWS_OF_POSITIONS, shape)
            else:
                arrays[spec.name] = rng.standard_normal(shape, dtype=np.float32)
        for of in ("", "image_", "text_"):
            if f"{of}cos" in arrays:
                angle = 3 * arrays[f"{of}cos"]
                arrays[f"{of}cos"], arrays[f"{of}sin"] = np.cos(angle), np.sin(angle)
        if "image" in arrays:
            arrays["image"] = arrays["image"].clip(-1, 1)
        return arrays

    return inputs


def _size(axis: str, sizes: dict[str, int]) -> int:
    factor, name = split_axis(axis)
    return factor * sizes[name]


@pytest.fixture(scope="session")
def int8_bundle(
    random_checkpoint: Callable[..., Path],
    with_outliers: Callable[[str], tuple[Path, Path]],
    shared: SharedFolders,
) -> Callable[..., tuple[Path, Path]]:
    """`int8_bundle(name, outliers=False) -> (checkpoint, bundle)`; read-only."""

    def bundle(name: str, outliers: bool = False) -> tuple[Path, Path]:
        source = with_outliers(name)[1] if outliers else random_checkpoint(name)
        folder = shared(lambda folder: export_bundle(source, folder, precision="int8"), "bundle", "int8", source)
        return source, folder

    return bundle


@pytest.fixture(scope="session")
def calibrated(shared: SharedFolders) -> Callable[[Path], Path]:
    """`calibrated(checkpoint) -> folder`: two trajectories of small pictures, the first an edit; read-only."""

    def folder(checkpoint: Path) -> Path:
        def write(folder: Path) -> None:
            patches = np.random.default_rng(0).integers(0, 256, (6, 8, 4)).astype(np.uint8)
            image = Image.fromarray(patches).resize((320, 300), Image.Resampling.BICUBIC)
            calibrate(
                checkpoint,
                folder,
                ["a red circle", "蓝色"],
                images=[image],
                reference_resolution=288,
                steps=8,
                sizes=[(96, 64), (64, 96)],
            )

        return shared(write, "calibration", checkpoint)

    return folder


@pytest.fixture(scope="session")
def static_bundle(
    calibrated: Callable[[Path], Path],
    with_outliers: Callable[[str], tuple[Path, Path]],
    shared: SharedFolders,
) -> Callable[..., tuple[Path, Path]]:
    """`static_bundle(name, target, precision, outliers=False, **options) -> (checkpoint, bundle)`; read-only.

    Without outliers the checkpoint is one whose gates are open (see `with_outliers`).
    """

    def bundle(name: str, target: str, precision: str, outliers: bool = False, **options: Any) -> tuple[Path, Path]:
        source = with_outliers(name)[outliers]

        def write(folder: Path) -> None:
            calibration = calibrated(source) if TARGETS[target, precision].quantisation is not None else None
            export_bundle(source, folder, target=target, precision=precision, calibration=calibration, **options)

        return source, shared(write, "bundle", target, precision, source, *sorted(options.items()))

    return bundle


@pytest.fixture
def edited_checkpoint(random_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`edited_checkpoint(network, change) -> Path`: a copy whose tensors by name `change` has been given."""

    def edited(network: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
        folder = shutil.copytree(random_checkpoint(), tmp_path / "edited")
        (file,) = (folder / network).glob("*.safetensors")
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        change(tensors)
        save_file(tensors, file, {"format": "pt"})
        return folder

    return edited
