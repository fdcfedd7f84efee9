from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from benchmarks.rtx import rewrites, spellings
from benchmarks.rtx.rewrites import Rewrite
from qwen_image_engine.calibration.quantise.network import quantised_networks
from qwen_image_engine.engines.core.contract import Contract
from qwen_image_engine.export.bundle.network_folder import write_network
from qwen_image_engine.export.targets import choose_target
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint

TOKENS, PREFIX = 6, 5
Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def step(
    random_checkpoint: Callable[..., Path], trace_once: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Contract]]:
    """`step(dtype) -> (graph, contract)`: the step of `narrow` as for TensorRT in bf16, with numbers of this dtype."""
    checkpoint = Checkpoint.open(random_checkpoint("narrow"))
    quantised = quantised_networks(checkpoint, None, None)["transformer"]

    def write(dtype: str) -> tuple[Path, Contract]:
        folder = tmp_path_factory.mktemp(dtype)
        target = replace(choose_target("tensorrt", "bf16"), dtype=dtype)
        written = write_network(checkpoint, ["step"], target, quantised, "copy", folder, {}, lambda what, count: None)
        entry = written.components["step"]
        return folder / entry.model, entry.contract

    return write


@pytest.fixture(scope="module")
def in_float32(step: Callable[[str], tuple[Path, Contract]]) -> tuple[Path, Contract]:
    return step("float32")


@pytest.fixture(scope="module")
def inputs(in_float32: tuple[Path, Contract]) -> Arrays:
    sizes = {"batch": 1, "tokens": TOKENS, "prefix": PREFIX}
    rng = np.random.default_rng(0)
    return {
        spec.name: rng.standard_normal(
            [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape], dtype=np.float32
        )
        for spec in in_float32[1].inputs
    }


def rewritten(graph: Path, contract: Contract, rewrite: Rewrite) -> tuple[Callable[[Arrays], Arrays], Contract]:
    """Return a function that runs the rewritten graph, and the contract that it has."""
    model = ir.load(graph)
    contract = rewrite(model, contract)
    path = graph.with_name("rewritten.onnx")
    ir.save(model, path)
    session = onnxruntime.InferenceSession(path)
    names = [value.name for value in session.get_outputs()]
    return lambda arrays: dict(zip(names, session.run(None, arrays), strict=True)), contract


@pytest.mark.parametrize(
    "rewrite", [rewrites.negated, rewrites.keys_beside_values, rewrites.output_by_einsum, rewrites.one_tanh]
)
def test_other_spellings_compute_the_same(in_float32: tuple[Path, Contract], inputs: Arrays, rewrite: Rewrite) -> None:
    expected = rewritten(*in_float32, rewrites.exported)[0](inputs)["velocity"]
    found = rewritten(*in_float32, rewrite)[0](inputs)["velocity"]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "rewrite",
    [rewrites.keys_and_values_whole, rewrites.keys_and_values_whole_by_heads, rewrites.values_whole_by_heads],
)
def test_what_is_bound_whole_ends_in_the_same_once_the_own_rows_are_in_place(
    in_float32: tuple[Path, Contract], inputs: Arrays, rewrite: Rewrite
) -> None:
    expected = rewritten(*in_float32, rewrites.exported)[0](inputs)["velocity"]
    run, contract = rewritten(*in_float32, rewrite)
    by_heads = "heads" in rewrite.__name__
    own = [spec.name for spec in contract.outputs if spec.name != "velocity"]
    arrays = dict(inputs)
    for name in own:
        cache = inputs[name.removeprefix("own_")]
        cache = np.concatenate([cache, np.zeros((1, TOKENS, *cache.shape[2:]), np.float32)], axis=1)
        arrays[name.removeprefix("own_")] = np.ascontiguousarray(cache.swapaxes(1, 2)) if by_heads else cache
    # Each block's own rows depend on those of the blocks before it.
    for _ in range(len(own) + 1):
        found = run(arrays)
        for name in own:
            cache = arrays[name.removeprefix("own_")]
            tokens_first = cache.swapaxes(1, 2) if by_heads else cache
            tokens_first[:, PREFIX:] = found[name].reshape(tokens_first[:, PREFIX:].shape)
    np.testing.assert_allclose(found["velocity"], expected, atol=1e-5 * np.abs(expected).max())


def test_scattered_rows_are_read(in_float32: tuple[Path, Contract], inputs: Arrays) -> None:
    expected = rewritten(*in_float32, rewrites.exported)[0](inputs)["velocity"]
    run, contract = rewritten(*in_float32, rewrites.keys_and_values_scattered)
    arrays = {**inputs, "rows": np.arange(PREFIX, PREFIX + TOKENS)[:, None]}
    for name in (spec.name for spec in contract.inputs if spec.is_cache):
        arrays[name] = np.concatenate([inputs[name][0], np.full((TOKENS, *inputs[name].shape[2:]), 9, np.float32)])
    np.testing.assert_allclose(run(arrays)["velocity"], expected, atol=1e-5 * np.abs(expected).max())


def test_every_rewrite_leaves_a_graph_with_the_tensors_of_its_contract(
    step: Callable[[str], tuple[Path, Contract]],
) -> None:
    graph, contract = step("bfloat16")
    for rewrite in {spelling.rewrite for spelling in spellings.SPELLINGS}:
        model = ir.load(graph)
        found = rewrite(model, contract)
        path = graph.with_name("rewritten.onnx")
        ir.save(model, path)
        onnx.checker.check_model(path)
        assert [value.name for value in model.graph.inputs] == [spec.name for spec in found.inputs], rewrite.__name__
        assert [value.name for value in model.graph.outputs] == [spec.name for spec in found.outputs], rewrite.__name__
