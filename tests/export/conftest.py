"""Bundles of random checkpoints, and inputs for their graphs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_image_engine.engines.contract import Contract, split_axis
from qwen_image_engine.engines.engine import Array


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
