"""TensorRT engines through the whole pipeline, on a TensorRT and a driver that are played: what is asked of them."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeDriver
from fake_tensorrt_runtime import VERSION, Context, Known, Severity, fake_tensorrt, plan_bytes
from images import patches
from numpy_engines import DIMS, FACTS, Journal, numpy_pipeline, same_pictures

from qwen_image_engine.engines.contract import COMPONENTS, Contract, TensorSpec, contract, split_axis
from qwen_image_engine.engines.cuda_memory import CudaMemory
from qwen_image_engine.engines.device_array import DeviceArray
from qwen_image_engine.engines.errors import OutOfDeviceMemory, QwenImageError
from qwen_image_engine.engines.plan_entry import PlanEntry, Profile, Shape
from qwen_image_engine.runtime.bundle import Bundle
from qwen_image_engine.runtime.bundle_files import describe_file
from qwen_image_engine.runtime.manifest import (
    CheckpointEntry,
    ComponentEntry,
    EmbeddingsEntry,
    Fp8Scales,
    Manifest,
    Tool,
)
from qwen_image_engine.runtime.memory import Components, Memory
from qwen_image_engine.runtime.pipeline import QwenImage

SIZE: dict[str, Any] = {"width": 64, "height": 96, "steps": 5}
REFERENCES: dict[str, Any] = {"references": [patches(90, 60), patches(50, 70, "RGB", 1)], "reference_resolution": 64}
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


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    return driver


@pytest.fixture
def make_bundle(driver: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeBundle]:
    """A bundle of the toy networks, with what its plan entries are to say."""
    contracts = {name: contract(name, DIMS) for name in COMPONENTS}
    known = {
        name: Known(item, (profile(item, "all"), *([profile(item, "small", tokens=16)] if name == "step" else ())))
        for name, item in contracts.items()
    }

    def make(**values: Any) -> Bundle:
        components, plans, files = {}, {}, {}
        for name, item in contracts.items():
            graph, plan = tmp_path / f"{name}.onnx", tmp_path / f"{name}.plan"
            graph.write_bytes(b"graph")
            plan.write_bytes(plan_bytes(name, values.get("stripped", False)))
            files |= {path.name: describe_file(path) for path in (graph, plan)}
            components[name] = ComponentEntry(graph.name, (graph.name,), "bf16", (), {}, 23, 11, item)
            profiles = tuple(known[name].profiles)
            plans[name] = PlanEntry(plan.name, "aa", VERSION, "A GPU", "9.0", 13000, profiles)
            plans[name] = replace(plans[name], **values)
        return Bundle(
            tmp_path,
            Manifest(
                tool=Tool("0.1.0", "ab"),
                target="tensorrt",
                precision="bf16",
                weights="copy",
                checkpoint=CheckpointEntry("toy", "/toy", "other", "cd", "ef"),
                dims=DIMS,
                facts=FACTS,
                embeddings=EmbeddingsEntry("step.onnx", 0, "float32", (1, 1)),
                components=components,
                files=files,
                plans=plans,
            ),
        )

    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(known, driver))
    _forget_modules()
    yield make
    _forget_modules()


def _forget_modules() -> None:
    """Those that have imported what is played."""
    for name in [name for name in sys.modules if name.startswith("qwen_image_engine.engines.tensorrt_")]:
        del sys.modules[name]


def pipeline(bundle: Bundle, checkpoint: Path, memory: Memory = "resident") -> QwenImage:
    toy = numpy_pipeline(checkpoint, Journal())
    toy._components = Components(partial(bundle.load_engine, backend="tensorrt"), memory)
    toy._encoder._components = toy._components
    return toy


def expected(checkpoint: Path, **arguments: Any) -> Any:
    return numpy_pipeline(checkpoint, Journal()).generate("a", **SIZE, **arguments)


@pytest.mark.parametrize("memory", ["resident", "sequential"])
@pytest.mark.parametrize(
    "arguments",
    [{}, REFERENCES, {"num_images": 3, "guidance": 2.5, "negative_prompt": "grey"}],
    ids=["text", "references", "batch and guidance"],
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
            "cuStreamSynchronize": 1,
            "cuMemcpyHtoDAsync_v2": 4,  # latents, time, cos, sin; keys and values stay
            "cuMemcpyDtoHAsync_v2": 1,
            "cuMemcpyDtoD_v2": 0,
        }.items():
            assert [after[name] - before[name] for before, after in pairwise(seen[1:])] == [each] * 3
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
    def refuse(stream: Any, graph: Any) -> int:
        driver.captured = None
        return 901

    driver.do_cuStreamEndCapture = refuse  # type: ignore[method-assign]
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
    from numpy_engines import NumpyEngine

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
    streaming = make_bundle(weight_streaming=True)
    with pipeline(streaming, checkpoint) as drawn:
        assert same_pictures(drawn.generate("a", **SIZE), expected(checkpoint))
        held = {name: engine._engine for name, engine in drawn._components._held.items()}  # type: ignore[attr-defined]
    assert held["prefix"].weight_streaming_budget_v2 == 0  # it keeps nothing beside the step's
    assert held["step"].weight_streaming_budget_v2 == 1000  # of which all fits
    assert driver.calls["cuGraphLaunch"] > 0


def test_a_plan_without_weights_takes_those_of_the_graph(make_bundle: MakeBundle, checkpoint: Path) -> None:
    bundle = make_bundle(stripped=True)
    with pipeline(bundle, checkpoint) as drawn:
        assert same_pictures(drawn.generate("a", **SIZE), expected(checkpoint))
    (bundle.folder / "step.onnx").write_bytes(b"another")
    with pytest.raises(QwenImageError, match=r"step\.onnx: 1 weights of the plan are not in it \(proj_out"):
        bundle.load_engine("step", "tensorrt")


def test_a_plan_without_weights_takes_the_scale_of_fp8_attention(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(stripped=True)
    bundle.load_engine("prefix", "tensorrt").close()
    assert sys.modules["tensorrt"].named == {}
    entry = replace(bundle.manifest.components["step"], fp8_attention={"blocks.0": Fp8Scales(1.0, 1.0, 1.0, 1 / 448)})
    components = {**bundle.manifest.components, "step": entry}
    bundle = Bundle(bundle.folder, replace(bundle.manifest, components=components))
    bundle.load_engine("step", "tensorrt").close()
    # 1/448 is 0x3b124925 in float32, and 0x3b12 in bfloat16.
    assert sys.modules["tensorrt"].named == {"softmax_scale": ("bfloat16", 0x3B12, 1)}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tensorrt": "11.1.0.1"}, r"built by TensorRT 11\.1\.0\.1, this is 11\.4\.0\.106; .*qwen-image build"),
        (
            {"gpu": "B GPU", "compute_capability": "8.9"},
            r"on B GPU \(compute capability 8\.9\), this is A GPU \(9\.0\)",
        ),
        ({"driver": 13020}, r"a driver of CUDA 13\.2, this one serves 13\.0"),
        ({"profiles": ()}, r"it has 2 profiles, its manifest 0"),
    ],
)
def test_a_plan_of_another_machine_is_refused(make_bundle: MakeBundle, values: dict[str, Any], words: str) -> None:
    with pytest.raises(QwenImageError, match=words):
        make_bundle(**values).load_engine("step", "tensorrt")


def test_a_plan_changed_by_one_byte_is_refused(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    plan = bundle.folder / "step.plan"
    data = bytearray(plan.read_bytes())
    data[-1] ^= 1
    plan.write_bytes(data)
    with pytest.raises(QwenImageError, match=r"step: .*step\.plan has other contents .*: qwen-image build "):
        bundle.load_engine("step", "tensorrt")
    bundle.load_engine("prefix", "tensorrt").close()


def test_what_tensorrt_says_of_a_plan_is_one_line(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    plan = bundle.folder / "step.plan"
    plan.write_bytes(b"no plan")
    bundle = replace(bundle, manifest=replace(bundle.manifest, files={"step.plan": describe_file(plan)}))
    words = r"cannot use .*step\.plan: Serialization assertion failed; build it again with: qwen-image build"
    with pytest.raises(QwenImageError, match=words) as caught:
        bundle.load_engine("step", "tensorrt")
    assert "\n" not in str(caught.value)
    assert "a warning" not in str(caught.value)


def test_a_bundle_without_plans_names_the_command(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    bare = replace(bundle, manifest=replace(bundle.manifest, plans={}))
    with pytest.raises(
        QwenImageError, match=r"step: .* holds no TensorRT engine of it; make one with: qwen-image build"
    ):
        bare.load_engine("step", "tensorrt")


def test_a_size_outside_every_profile_is_told(make_bundle: MakeBundle, checkpoint: Path) -> None:
    with (
        pipeline(make_bundle(), checkpoint) as drawn,
        pytest.raises(QwenImageError, match=r"step: latents \(1, 1024, 4\) .* the nearest, all, takes .*--profile"),
    ):
        drawn.generate("a", width=512, height=512, steps=2)


class TestMemory:
    def test_weights_without_room_are_refused_before_they_are_read(
        self, make_bundle: MakeBundle, driver: FakeDriver
    ) -> None:
        bundle = make_bundle()
        driver.total_bytes = 1000
        with pytest.raises(
            OutOfDeviceMemory, match=r"its weights take \d+ bytes, .* and 1000 of .* are missing; .*stream"
        ):
            bundle.load_engine("step", "tensorrt")

    def test_so_are_activations_that_the_build_measured(self, make_bundle: MakeBundle, driver: FakeDriver) -> None:
        bundle = make_bundle(scratch_bytes=(5000, 3000))
        driver.total_bytes = 4000
        with pytest.raises(OutOfDeviceMemory, match=r"activations of its smallest profile 3000 more, and 4000 of"):
            bundle.load_engine("step", "tensorrt")

    def test_activations_without_room_are_told(
        self, make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver
    ) -> None:
        with pipeline(make_bundle(), checkpoint, "sequential") as drawn:
            conditioning = drawn.encode("a")
            driver.total_bytes = driver.total_bytes - driver.free_bytes + 2000
            with pytest.raises(
                OutOfDeviceMemory,
                match=r"step, profile \w+: activations take \d+ bytes and \d+ bytes of the GPU's memory",
            ):
                list(drawn.sample(conditioning, **SIZE))
            driver.total_bytes = 1 << 30
            assert len(list(drawn.sample(conditioning, **SIZE))) == SIZE["steps"]

    def test_where_the_transformer_does_not_fit_twice_its_graphs_take_turns(
        self, make_bundle: MakeBundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = make_bundle()
        held: set[str] = set()

        def load(component: str) -> Any:
            if component in ("prefix", "step") and held & {"prefix", "step"}:
                raise OutOfDeviceMemory("no room")
            engine = bundle.load_engine(component, "tensorrt")
            close = engine.close
            monkeypatch.setattr(engine, "close", lambda: (held.discard(component), close()))
            held.add(component)
            return engine

        drawn = numpy_pipeline(checkpoint, Journal())
        drawn._components = drawn._encoder._components = Components(load)
        drawn._components.preload("text_encoder", "prefix", "step")
        assert held == {"text_encoder", "step"}
        assert same_pictures(drawn.generate("a", **SIZE), expected(checkpoint))
        assert held >= {"text_encoder", "step", "vae_decoder_up"}
        assert "prefix" not in held

    @pytest.mark.parametrize("refused", ["create_execution_context", "execute_async_v3"])
    def test_memory_that_tensorrt_says_ran_out_is_told_as_such(
        self, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, refused: str
    ) -> None:
        engine: Any = make_bundle().load_engine("step", "tensorrt")

        def refuse(*arguments: Any) -> None:
            engine._session.log.log(Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was 8; out of memory)")

        of = type(engine._engine) if refused == "create_execution_context" else Context
        monkeypatch.setattr(of, refused, refuse)
        with pytest.raises(OutOfDeviceMemory, match=r"step, profile \w+: TensorRT .*out of memory"):
            engine.run(step_inputs(engine.contract))

    @pytest.mark.parametrize("what", ["conditioning.with_room", "denoiser.repeat"])
    def test_keys_and_values_without_room_free_other_graphs(
        self, make_bundle: MakeBundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        import importlib

        module, name = what.split(".")
        allocate = getattr(importlib.import_module(f"qwen_image_engine.runtime.{module}"), name)
        arguments: dict[str, Any] = REFERENCES | {"num_images": 2}
        with pipeline(make_bundle(), checkpoint) as drawn:
            drawn.generate("b", **SIZE, **arguments)
            held = drawn._components._held
            needed = "step" if name == "with_room" else "prefix"

            def crowded(*values: Any) -> Any:
                if needed in held:
                    raise OutOfDeviceMemory("no room")
                return allocate(*values)

            monkeypatch.setattr(f"qwen_image_engine.runtime.{what}", crowded)
            found = drawn.generate("a", **SIZE, **arguments)
        monkeypatch.setattr(f"qwen_image_engine.runtime.{what}", allocate)
        assert same_pictures(found, expected(checkpoint, **arguments))

    def test_other_components_are_not_freed_for_it(self) -> None:
        def load(component: str) -> Any:
            if component == "vae_encoder":
                raise OutOfDeviceMemory("no room")
            raise AssertionError

        with pytest.raises(OutOfDeviceMemory, match="no room"):
            Components(load).run("vae_encoder", {})


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a driver")
def test_no_driver_is_told_and_the_process_lives(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """In a process of its own: TensorRT crashes where there is no driver."""
    import pickle

    kept = tmp_path / "bundle.pickle"
    kept.write_bytes(pickle.dumps(make_bundle()))
    code = (
        "import pickle, sys; bundle = pickle.load(open(sys.argv[1], 'rb'))\n"
        "try: bundle.load_engine('step', 'tensorrt')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, kept], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("QwenImageError no CUDA driver: libcuda.so.1 cannot be loaded")


def step_inputs(of: Contract) -> dict[str, Any]:
    rng, sizes = np.random.default_rng(0), {"batch": 1, "tokens": 5, "prefix": 3}
    return {
        spec.name: rng.standard_normal(
            [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape], np.float32
        )
        for spec in of.inputs
    }


def test_arrays_of_the_host_stand_for_keys_and_values(make_bundle: MakeBundle) -> None:
    engine = make_bundle().load_engine("step", "tensorrt")
    inputs = step_inputs(engine.contract)
    from numpy_engines import NumpyEngine

    expected = NumpyEngine("step", Journal()).run(inputs)["velocity"]
    for _ in range(3):
        np.testing.assert_array_equal(engine.run(inputs)["velocity"], expected)
    engine.close()
    engine.close()
    with pytest.raises(QwenImageError, match="closed"):
        engine.run(inputs)
