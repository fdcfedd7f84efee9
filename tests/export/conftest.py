"""Bundles of random checkpoints. Each graph is traced once a session, as values of weights do not change it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from qwen_image_engine.engines.contract import Contract, split_axis
from qwen_image_engine.engines.engine import Array
from qwen_image_engine.export import network_folder
from qwen_image_engine.export.bundle import export_bundle
from qwen_image_engine.export.trace import trace
from qwen_image_engine.reference.checkpoint import Checkpoint
from qwen_image_engine.reference.engine import NETWORK


@pytest.fixture(scope="session", autouse=True)
def _trace_once() -> Iterator[None]:
    traced: dict[tuple[object, ...], ir.Model] = {}

    def once(checkpoint: Checkpoint, component: str, dtype: torch.dtype) -> ir.Model:
        key = (getattr(checkpoint, NETWORK[component]), component, dtype)
        if key not in traced:
            traced[key] = trace(checkpoint, component, dtype)
        return traced[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_folder, "trace", once)
        yield


@pytest.fixture(scope="session")
def bundle(
    random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """`bundle(name) -> (checkpoint, bundle)` in fp32 with copied weights, exported once."""
    exported: dict[str, tuple[Path, Path]] = {}

    def of(name: str) -> tuple[Path, Path]:
        if name not in exported:
            checkpoint = random_checkpoint(name)
            output = tmp_path_factory.mktemp("bundles") / name
            export_bundle(checkpoint, output)
            exported[name] = checkpoint, output
        return exported[name]

    return of


@pytest.fixture
def random_inputs() -> Callable[..., dict[str, Array]]:
    """`random_inputs(contract, batch=…, …)`: arrays of a contract's inputs; cos and sin are of the same angles."""

    def inputs(contract: Contract, **sizes: int) -> dict[str, Array]:
        rng = np.random.default_rng(sum(sizes.values()))
        arrays: dict[str, Any] = {}
        for spec in contract.inputs:
            shape = [axis if isinstance(axis, int) else _size(axis, sizes) for axis in spec.shape]
            arrays[spec.name] = rng.standard_normal(shape, dtype=np.float32)
        if "cos" in arrays:
            angle = 3 * arrays["cos"]
            arrays["cos"], arrays["sin"] = np.cos(angle), np.sin(angle)
        if "image" in arrays:
            arrays["image"] = arrays["image"].clip(-1, 1)
        return arrays

    return inputs


def _size(axis: str, sizes: dict[str, int]) -> int:
    factor, name = split_axis(axis)
    return factor * sizes[name]
