"""A pipeline on plans that a played TensorRT runs, of the toy networks of `numpy_engines`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qwen_image_engine.engines.core.contract import Contract, TensorSpec, split_axis
from qwen_image_engine.engines.plans.entry import Profile, Shape
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.component_pool import ComponentPool, Memory
from qwen_image_engine.runtime.pipeline import QwenImage
from tests.support.images import mask_of, patches
from tests.support.numpy_engines import Journal, numpy_pipeline

SIZE: dict[str, Any] = {"width": 64, "height": 96, "steps": 5}
REFERENCES: dict[str, Any] = {"references": [patches(90, 60), patches(50, 70, "RGB", 1)], "reference_resolution": 64}
MASKED: dict[str, Any] = {
    "references": [patches(64, 96)],
    "reference_resolution": 80,
    "mask": mask_of(np.repeat(np.uint8([[0, 255]]), 32, axis=1).repeat(96, axis=0)),
}
MakeBundle = Callable[..., Bundle]


def profile(of: Contract, name: str, **most: int) -> Profile:
    """Every axis from 1 to 400, or to what is given."""

    def shape(spec: TensorSpec, sizes: dict[str, int], otherwise: int) -> Shape:
        axes = [(axis, *split_axis(axis)) if isinstance(axis, str) else (axis, axis, "") for axis in spec.shape]
        return tuple(
            factor * sizes.get(symbol, otherwise) if isinstance(axis, str) else axis for axis, factor, symbol in axes
        )

    return Profile(
        name,
        {
            spec.name: (shape(spec, {}, 1), shape(spec, most, 400), shape(spec, {"batch": 4, **most}, 400))
            for spec in of.inputs
        },
    )


def pipeline(
    bundle: Bundle, checkpoint: Path, memory: Memory = "resident", engine: str = "tensorrt", **options: Any
) -> QwenImage:
    toy = numpy_pipeline(checkpoint, Journal())
    toy._components = ComponentPool(partial(bundle.load_engine, backend=engine, **options), memory)
    toy._encoder._components = toy._components
    return toy


def expected(checkpoint: Path, **arguments: Any) -> Any:
    return numpy_pipeline(checkpoint, Journal()).generate("a", **SIZE, **arguments)


def step_inputs(of: Contract) -> dict[str, Any]:
    rng, sizes = np.random.default_rng(0), {"batch": 1, "tokens": 5, "prefix": 3}
    return {
        spec.name: rng.standard_normal(
            [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape], np.float32
        )
        for spec in of.inputs
    }
