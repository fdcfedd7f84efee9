"""Memory of a GPU that does not suffice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError
from qwen_image_engine.runtime.component_pool import ComponentPool
from tests.support.fake_cuda import FakeDriver
from tests.support.fake_tensorrt_runtime import OUT_OF_MEMORY, Context, Severity
from tests.support.numpy_engines import Journal, numpy_pipeline, same_pictures
from tests.support.played_tensorrt import REFERENCES, SIZE, MakeBundle, expected, pipeline, step_inputs


def test_weights_without_room_are_refused_before_they_are_read(make_bundle: MakeBundle, driver: FakeDriver) -> None:
    bundle = make_bundle()
    driver.total_bytes = 1000
    with pytest.raises(OutOfDeviceMemory, match=r"its weights take \d+ bytes, .* and 1000 of .* are missing; .*stream"):
        bundle.load_engine("step", "tensorrt")


def test_so_are_activations_that_the_build_measured(make_bundle: MakeBundle, driver: FakeDriver) -> None:
    bundle = make_bundle(scratch_bytes=(5000, 3000))
    driver.total_bytes = 4000
    with pytest.raises(OutOfDeviceMemory, match=r"activations of its smallest profile 3000 more, and 4000 of"):
        bundle.load_engine("step", "tensorrt")


def test_activations_without_room_are_told(make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver) -> None:
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
    make_bundle: MakeBundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
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
    drawn._components = drawn._encoder._components = ComponentPool(load)
    drawn._components.preload("text_encoder", "prefix", "step")
    assert held == {"text_encoder", "step"}
    assert same_pictures(drawn.generate("a", **SIZE), expected(checkpoint))
    assert held >= {"text_encoder", "step", "vae_decoder_up"}
    assert "prefix" not in held


@pytest.mark.parametrize("refused", ["create_execution_context", "execute_async_v3", "set_device_memory"])
def test_memory_that_tensorrt_says_ran_out_is_told_as_such(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    engine: Any = make_bundle().load_engine("step", "tensorrt")

    def refuse(*arguments: Any) -> None:
        engine._session.log.log(Severity.ERROR, OUT_OF_MEMORY)

    of = type(engine._engine) if refused == "create_execution_context" else Context
    monkeypatch.setattr(of, refused, refuse)
    with pytest.raises(OutOfDeviceMemory, match=r"step, profile \w+: TensorRT .*OutOfMemory"):
        engine.run(step_inputs(engine.contract))


def test_a_profile_that_is_refused_has_tensorrts_reason(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = make_bundle().load_engine("step", "tensorrt")
    monkeypatch.setattr(type(engine._engine), "refuses_profiles", True)
    with pytest.raises(OutOfDeviceMemory, match=r"TensorRT does not take profile \d: .*Requested size was 8 bytes"):
        engine.run(step_inputs(engine.contract))


def test_shapes_that_cannot_be_inferred_have_tensorrts_reason(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = make_bundle().load_engine("step", "tensorrt")

    def infer(context: Any) -> list[str]:
        engine._session.log.log(Severity.ERROR, OUT_OF_MEMORY)
        raise RuntimeError("infer_shapes error code: -1")

    with monkeypatch.context() as patch:
        patch.setattr(Context, "infer_shapes", infer)
        with pytest.raises(OutOfDeviceMemory, match=r"infers no shapes: .*Requested size was 8 bytes.*error code: -1"):
            engine.run(step_inputs(engine.contract))
    monkeypatch.setattr(Context, "infer_shapes", lambda context: ["cos", "sin"])
    with pytest.raises(QwenImageError, match="TensorRT does not know the shapes of cos, sin"):
        engine.run(step_inputs(engine.contract))


def test_scratch_memory_that_is_refused_is_not_run_in(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = make_bundle().load_engine("step", "tensorrt")
    monkeypatch.setattr(Context, "update_device_memory_size_for_shapes", lambda context: 0)
    with pytest.raises(QwenImageError, match="TensorRT does not take 1 bytes of scratch memory: setDeviceMemoryV2"):
        engine.run(step_inputs(engine.contract))


@pytest.mark.parametrize("what", ["conditioning.with_room", "denoiser.repeat"])
def test_keys_and_values_without_room_free_other_graphs(
    make_bundle: MakeBundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, what: str
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


def test_other_components_are_not_freed_for_it() -> None:
    def load(component: str) -> Any:
        if component == "vae_encoder":
            raise OutOfDeviceMemory("no room")
        raise AssertionError

    with pytest.raises(OutOfDeviceMemory, match="no room"):
        ComponentPool(load).run("vae_encoder", {})
