"""Every graph of one bundle against PyTorch in fp32, on every engine and at several sizes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from qwen_image_engine.engines.backends import load_engine
from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.engine import Array, Engine
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.torch_engine import reference_engines
from qwen_image_engine.runtime.bundle.manifest import read_manifest

# Batch 1 and 4, square and not, prompts of one token, of a few and of many; the smallest picture is 32x32. An image
# has 4 tokens for each of its slots.
SIZES = (
    {"batch": 1, "text": 1, "prefix": 1, "tokens": 4, "height": 2, "width": 2, "image": 4, "slots": 1},
    {"batch": 4, "text": 19, "prefix": 7, "tokens": 24, "height": 6, "width": 4, "image": 24, "slots": 6},
    {"batch": 1, "text": 130, "prefix": 116, "tokens": 36, "height": 2, "width": 18, "image": 40, "slots": 10},
)

# fp32 in another order of summation: 1e-6 is what engines reach, 1e-5 what the issue asks for.
LIMIT = 1e-5


def relative_l2(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="session")
def references(random_checkpoint: Callable[..., Path]) -> Callable[[str], dict[str, Engine]]:
    """The torch engines of a configuration, those of both kinds of attention."""
    made: dict[str, dict[str, Engine]] = {}

    def of(name: str) -> dict[str, Engine]:
        if name not in made:
            folder = random_checkpoint(name)
            joint = reference_engines(Checkpoint.open(folder, attention="bidirectional"))
            made[name] = joint | reference_engines(Checkpoint.open(folder))
        return made[name]

    return of


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["narrow", "odd"])
def test_engines_compute_what_torch_does(
    exported: Callable[..., Path],
    references: Callable[[str], dict[str, Engine]],
    random_inputs: Callable[..., dict[str, Array]],
    name: str,
    backend: str,
    component: str,
    within: Callable[[str, float, float], None],
) -> None:
    pytest.importorskip(backend)
    folder = exported(name, attention="bidirectional" if component == "joint" else None)
    entry = read_manifest(folder).components[component]
    engine = load_engine(backend, folder / entry.model, entry.contract)
    for sizes in SIZES:
        inputs = random_inputs(entry.contract, **sizes)
        expected = references(name)[component].run(inputs)
        found = engine.run(inputs)
        worst = max(relative_l2(found[key], expected[key]) for key in expected)
        within(f"{component} on {backend} against torch, relative L2", worst, LIMIT)


class MultiHeadAttention(OpRun):
    """com.microsoft.MultiHeadAttention without mask, bias and cache, as its documentation defines it."""

    op_domain = "com.microsoft"

    def _run(
        self,
        query: Array,
        key: Array,
        value: Array,
        num_heads: int,
        unidirectional: int = 0,
        scale: float | None = None,
    ) -> tuple[Array]:
        q, k, v = (x.reshape(*x.shape[:2], num_heads, -1).swapaxes(1, 2) for x in (query, key, value))
        scores = q @ k.swapaxes(2, 3) * (scale or q.shape[-1] ** -0.5)
        if unidirectional:
            scores = np.where(np.tri(*scores.shape[2:], dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = weights / weights.sum(-1, keepdims=True) @ v
        return (out.swapaxes(1, 2).reshape(query.shape),)


@pytest.mark.parametrize("component", COMPONENTS)
def test_graphs_mean_the_same_by_the_standard(
    exported: Callable[..., Path],
    references: Callable[[str], dict[str, Engine]],
    random_inputs: Callable[..., dict[str, Array]],
    component: str,
    within: Callable[[str, float, float], None],
) -> None:
    folder = exported("narrow", attention="bidirectional" if component == "joint" else None)
    entry = read_manifest(folder).components[component]
    model = onnx.load(str(folder / entry.model))
    evaluator = ReferenceEvaluator(model, new_ops=[MultiHeadAttention])
    width = 1 if "vae" in component else 2
    inputs: dict[str, Any] = random_inputs(
        entry.contract, batch=2, text=5, prefix=3, tokens=4, height=2, width=width, image=4, slots=2
    )
    found = dict(zip([spec.name for spec in entry.contract.outputs], evaluator.run(None, inputs), strict=True))
    expected = references("narrow")[component].run(inputs)
    worst = max(relative_l2(found[key], expected[key]) for key in expected)
    within(f"{component} on ONNX's reference evaluator against torch, relative L2", worst, LIMIT)
