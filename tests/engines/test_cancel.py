"""Runs that another thread ends, on the engines that can: long before their end, and without harm to the next."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from qwen_image_engine.engines.backends import load_engine
from qwen_image_engine.engines.core.contract import Contract, TensorSpec
from qwen_image_engine.engines.core.engine import CancellableEngine
from qwen_image_engine.engines.core.errors import Cancelled

WIDTH, LAYERS, ROWS = 512, 200, 512


@pytest.fixture
def deep(backend: str, write_graph: Callable[..., Path]) -> Any:
    """An engine whose run takes half a second or so, in operators of milliseconds."""
    specs = [TensorSpec(name, ("n", WIDTH), "float32", "") for name in ("x0", f"x{LAYERS}")]
    nodes: list[onnx.NodeProto] = []
    for layer in range(LAYERS):
        nodes.append(helper.make_node("MatMul", [f"x{layer}", "weight"], [f"y{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"y{layer}"], [f"x{layer + 1}"]))
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH), np.float32) / WIDTH**0.5
    contract = Contract("toy", "", (specs[0],), (specs[1],))
    engine = load_engine(backend, write_graph(contract, *nodes, weights={"weight": weight}), contract, threads=1)
    yield engine
    engine.close()


@pytest.mark.slow
def test_a_run_ends_when_it_is_cancelled(deep: Any) -> None:
    assert isinstance(deep, CancellableEngine)
    rows = np.random.default_rng(1).standard_normal((ROWS, WIDTH), np.float32)
    began = time.perf_counter()
    whole = deep.run({"x0": rows})
    timer = threading.Timer((time.perf_counter() - began) / 4, deep.cancel)
    timer.start()
    with pytest.raises(Cancelled, match="toy: the run was cancelled"):  # a run that came to its end would return
        deep.run({"x0": rows})
    timer.join()
    again = deep.run({"x0": rows})
    assert np.array_equal(again[f"x{LAYERS}"], whole[f"x{LAYERS}"])


def test_cancelling_without_a_run_changes_nothing(deep: Any) -> None:
    deep.cancel()
    rows = np.ones((1, WIDTH), np.float32)
    assert deep.run({"x0": rows})[f"x{LAYERS}"].shape == (1, WIDTH)
