"""TensorRT engines through the whole pipeline, on a TensorRT and a driver that are played: what is asked of them."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_image_engine.engines.core.device_array import DeviceArray
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda.memory import CudaMemory
from qwen_image_engine.runtime.component_pool import Memory
from tests.support.fake_cuda import FakeDriver
from tests.support.fake_tensorrt_runtime import Context
from tests.support.numpy_engines import Journal, same_pictures
from tests.support.played_tensorrt import MASKED, REFERENCES, SIZE, MakeBundle, expected, pipeline, step_inputs
from tests.support.request_checks import check_requests

STEERED: dict[str, Any] = {"num_images": 3, "guidance": 2.5, "negative_prompt": "grey"}


@pytest.mark.parametrize("memory", ["resident", "sequential"])
@pytest.mark.parametrize(
    "arguments",
    [{}, REFERENCES, STEERED, MASKED, {**MASKED, **STEERED, "solver": "heun"}],
    ids=["text", "references", "batch and guidance", "mask", "mask, batch and guidance"],
)
def test_pictures_are_those_of_the_networks_bit_for_bit(
    make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver, arguments: dict[str, Any], memory: Memory
) -> None:
    with pipeline(make_bundle(), checkpoint, memory) as drawn:
        first, again = (drawn.generate("a", **SIZE, **arguments) for _ in range(2))
    assert same_pictures(first, expected(checkpoint, **arguments))
    assert same_pictures(first, again)


def test_steps_are_replayed_without_an_allocation(
    make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver
) -> None:
    with pipeline(make_bundle(), checkpoint) as drawn:
        conditioning = drawn.encode("a")
        seen = []
        for _ in drawn.sample(conditioning, **SIZE):
            seen.append(driver.calls.copy())
        for name, each in {
            "cuMemAlloc_v2": 0,
            "cuMemHostAlloc": 0,
            "cuMemFree_v2": 0,
            "cuStreamBeginCapture_v2": 0,
            "cuGraphLaunch": 1,
            "cuStreamSynchronize": 0,
            "cuEventSynchronize": 1,
            "cuMemcpyHtoDAsync_v2": 1,  # time; all else stays
            "cuMemcpyDtoHAsync_v2": 0,
            "cuMemcpyDtoD_v2": 0,
        }.items():
            assert [after[name] - before[name] for before, after in pairwise(seen[1:-1])] == [each] * 2
        assert seen[-1]["cuStreamBeginCapture_v2"] == 1
        # Another picture of this size is all replay; another prompt has other keys and values, so another graph.
        list(drawn.sample(conditioning, seed=1, **SIZE))
        assert driver.calls["cuStreamBeginCapture_v2"] == 1
        list(drawn.sample(drawn.encode("another"), **SIZE))
        assert driver.calls["cuStreamBeginCapture_v2"] == 2


def test_each_branch_of_guidance_has_a_graph_of_its_own(
    make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver
) -> None:
    steered = {"guidance": 2.0, "negative_prompt": "b"}  # as long as the prompt
    with pipeline(make_bundle(), checkpoint) as drawn:
        assert same_pictures(drawn.generate("a", **SIZE, **steered), expected(checkpoint, **steered))
    assert driver.calls["cuStreamBeginCapture_v2"] == 2
    assert driver.calls["cuGraphLaunch"] == 2 * (SIZE["steps"] - 1)


def test_a_capture_that_fails_ends_no_run(make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver) -> None:
    driver.refuse_captures()
    with pipeline(make_bundle(), checkpoint) as drawn:
        with pytest.warns(RuntimeWarning, match="step: its runs cannot become CUDA graphs, .*Capture with error 901"):
            assert same_pictures(drawn.generate("a", **SIZE), expected(checkpoint))
        with warnings.catch_warnings(action="error"):
            assert same_pictures(drawn.generate("a", **SIZE), expected(checkpoint))
    assert driver.calls["cuStreamBeginCapture_v2"] == 1
    assert driver.calls["cuGraphLaunch"] == 0


def test_addresses_that_were_set_halfway_are_set_again(
    make_bundle: MakeBundle, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.numpy_engines import NumpyEngine

    engine: Any = make_bundle().load_engine("step", "tensorrt")
    engine._graphs = False  # one context serves all keys and values
    host = step_inputs(engine.contract)
    first, second = host, {name: values + 1 for name, values in host.items()}

    def placed(inputs: dict[str, Any]) -> dict[str, Any]:
        found = dict(inputs)
        for name in [name for name in inputs if name.startswith(("key_", "value_"))]:
            memory = CudaMemory(engine._session.context, inputs[name].nbytes)
            driver.view(memory.address, inputs[name].nbytes)[:] = inputs[name].reshape(-1).view(np.uint8)
            found[name] = DeviceArray(memory, inputs[name].shape, "float32")
        return found

    one, other = placed(first), placed(second)
    engine.run(one)
    set_address = Context.set_tensor_address
    monkeypatch.setattr(
        Context, "set_tensor_address", lambda self, name, at: name != "value_1" and set_address(self, name, at)
    )
    with pytest.raises(QwenImageError, match="takes no address for value_1"):
        engine.run(other)
    monkeypatch.setattr(Context, "set_tensor_address", set_address)
    wanted = NumpyEngine("step", Journal()).run(first)["velocity"]
    np.testing.assert_array_equal(engine.run(one)["velocity"], wanted)


def test_activations_that_moved_between_two_steps_are_captured_again(
    make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver
) -> None:
    with pipeline(make_bundle(), checkpoint) as drawn:
        for step in drawn.sample(drawn.encode("a"), **SIZE):
            if step.index == 2:
                drawn.encode("red " * 150)  # which takes more than a step
            latents = step.latents
    np.testing.assert_array_equal(latents, expected(checkpoint)[0].latents[None])
    assert driver.calls["cuStreamBeginCapture_v2"] == 2


def test_keys_and_values_stay_and_everything_is_freed(
    make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver
) -> None:
    with pipeline(make_bundle(), checkpoint) as drawn:
        conditioning = drawn.encode("a", drawn.read_references(**_sources()))
        assert all(isinstance(values, DeviceArray) for values in conditioning.cache.values())
        assert driver.calls["cuMemcpyDtoH_v2"] == 0
        drawn.generate("a", **SIZE)
    del drawn, conditioning
    assert driver.free_bytes == driver.total_bytes


def _sources() -> dict[str, Any]:
    return {"sources": REFERENCES["references"], "resolution": REFERENCES["reference_resolution"]}


def test_a_weight_from_the_host_is_never_replayed(
    make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver
) -> None:
    driver.total_bytes = 3 << 30  # what TensorRT proposes is more than 31 bits, which its bindings give
    streaming = make_bundle(weight_streaming=True)
    with pipeline(streaming, checkpoint) as drawn:
        assert same_pictures(drawn.generate("a", **SIZE), expected(checkpoint))
        held = {name: engine._engine for name, engine in drawn._components._held.items()}  # type: ignore[attr-defined]
    assert held["prefix"].weight_streaming_budget_v2 == 0  # it keeps nothing beside the step's
    assert held["step"].weight_streaming_budget_v2 == 1000  # of which all fits
    assert held["step"].get_weight_streaming_automatic_budget() < 0
    assert driver.calls["cuGraphLaunch"] > 0


def test_arrays_of_the_host_stand_for_keys_and_values(make_bundle: MakeBundle) -> None:
    engine = make_bundle().load_engine("step", "tensorrt")
    inputs = step_inputs(engine.contract)
    from tests.support.numpy_engines import NumpyEngine

    expected = NumpyEngine("step", Journal()).run(inputs)["velocity"]
    for _ in range(3):
        np.testing.assert_array_equal(engine.run(inputs)["velocity"], expected)
    engine.close()
    engine.close()
    with pytest.raises(QwenImageError, match="closed"):
        engine.run(inputs)


def test_a_request_that_ends_badly_harms_no_other(
    make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver
) -> None:
    drawn = pipeline(make_bundle(), checkpoint)
    check_requests(drawn)
    del drawn
    assert driver.free_bytes == driver.total_bytes
