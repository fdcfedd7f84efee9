"""Steps on the device: the same latents as on the host, nothing allocated between two, read back when asked for."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401, before a test takes ctypes.CDLL away, which it needs

from qwen_image_engine.engines.core.errors import Cancelled, OutOfDeviceMemory, QwenImageError
from qwen_image_engine.engines.core.loop import LoopingEngine, LoopInputs
from qwen_image_engine.engines.cuda.memory import CudaContext
from qwen_image_engine.engines.cuda.solver_kernel import SolverKernel
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.sampling.solver import SOLVERS
from qwen_image_engine.runtime.sampling.step import Step
from tests.support.fake_cuda import FakeDriver
from tests.support.numpy_engines import Journal, NumpyEngine, numpy_pipeline, same_pictures
from tests.support.played_tensorrt import REFERENCES, SIZE, MakeBundle, expected, pipeline, step_inputs

STEPS = SIZE["steps"]
GUIDED: dict[str, Any] = {"guidance": 2.5, "negative_prompt": "a grey square"}


@pytest.fixture
def after_each_step(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """The driver's calls, counted behind every step."""
    seen: list[Counter[str]] = []
    launch = SolverKernel.launch

    def launched(self: SolverKernel, *arguments: Any, **named: Any) -> None:
        launch(self, *arguments, **named)
        seen.append(driver.calls.copy())

    monkeypatch.setattr(SolverKernel, "launch", launched)
    return seen


@pytest.mark.parametrize("streaming", [False, True], ids=["graphs", "weights streamed"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        GUIDED,
        {**REFERENCES, "num_images": 3},
        {**REFERENCES, **GUIDED, "num_images": 2},
        *({**GUIDED, "solver": solver} for solver in SOLVERS),
    ],
    ids=["plain", "guidance", "references", "all", *SOLVERS],
)
@pytest.mark.parametrize("asked", [False, True], ids=["steps alone", "latents and previews"])
def test_latents_are_those_of_the_host_bit_for_bit(
    make_bundle: MakeBundle,
    checkpoint: Path,
    driver: FakeDriver,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    streaming: bool,
    asked: bool,
) -> None:
    room = driver.total_bytes // 20 + 500  # for 500 of 1,000
    monkeypatch.setattr(CudaContext, "free_bytes", lambda context: room)
    with pipeline(make_bundle(weight_streaming=streaming), checkpoint) as drawn:
        for seed in (0, 1):
            taken: list[Any] = []
            wanted: list[Any] = []
            found = drawn.generate("a", seed=seed, on_step=_asking(taken) if asked else None, **SIZE, **arguments)
            pictures = expected(checkpoint, seed=seed, on_step=_asking(wanted) if asked else None, **arguments)
            assert same_pictures(found, pictures)
            assert len(taken) == (3 * STEPS if asked else 0)
            for one, other in zip(taken, wanted, strict=True):
                np.testing.assert_array_equal(one, other)
    assert (driver.calls["cuGraphLaunch"] == 0) == streaming


def _asking(results: list[Any]) -> Callable[[Step], None]:
    def ask(step: Step) -> None:
        results.extend([step.latents, step.predicted, step.preview(1)])

    return ask


def test_latents_that_the_device_has_overwritten_are_told(make_bundle: MakeBundle, checkpoint: Path) -> None:
    steps: list[Step] = []
    with pipeline(make_bundle(), checkpoint) as drawn:
        pictures = drawn.generate("a", on_step=steps.append, **SIZE)
        np.testing.assert_array_equal(steps[-1].latents[0], pictures[0].latents)
        with pytest.raises(QwenImageError, match="step 1: its latents have been overwritten by a later step"):
            _ = steps[0].latents


def test_a_context_that_serves_both_branches_changes_when_its_run_is_done(
    make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single context, where captures fail; the played one refuses a change while a run of it is on its way."""
    driver.refuse_captures()
    bundle = make_bundle()
    pending = _pending_at_the_end_of_contexts(driver, monkeypatch)
    with pipeline(bundle, checkpoint) as drawn, pytest.warns(RuntimeWarning, match="cannot become CUDA graphs"):
        found = drawn.generate("a", **SIZE, **GUIDED)
    assert same_pictures(found, expected(checkpoint, **GUIDED))
    assert len(pending) >= 3
    assert not any(pending)


def _pending_at_the_end_of_contexts(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Runs that are on their way whenever a context goes."""
    from qwen_image_engine.engines.tensorrt.execution import TensorRtCall

    pending: list[int] = []
    make = TensorRtCall.__init__

    def made(self: TensorRtCall, *arguments: Any) -> None:
        make(self, *arguments)
        weakref.finalize(self, lambda: pending.append(len(driver.queue)))

    monkeypatch.setattr(TensorRtCall, "__init__", made)
    return pending


@pytest.mark.parametrize("arguments", [{}, GUIDED], ids=["plain", "guidance"])
def test_between_two_steps_nothing_is_allocated_and_one_mark_waited_for(
    make_bundle: MakeBundle,
    checkpoint: Path,
    driver: FakeDriver,
    after_each_step: list[Counter[str]],
    arguments: dict[str, Any],
) -> None:
    runs = 2 if arguments else 1
    with pipeline(make_bundle(), checkpoint) as drawn:
        drawn.generate("a", **SIZE, **arguments)
    for before, after in pairwise(after_each_step[1:]):  # the second step is captured
        assert after - before == Counter(
            {
                "cuMemcpyHtoDAsync_v2": 1,  # the time features
                "cuGraphLaunch": runs,
                "cuEventRecord": runs,
                "cuLaunchKernel": 1,
                "cuEventSynchronize": 1,
                **dict.fromkeys(("cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2"), 3 + 2 * runs),
            }
        )
    assert len(after_each_step) == STEPS


def test_each_step_is_done_when_its_caller_hears_of_it(
    make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver
) -> None:
    waiting: list[int] = []
    with pipeline(make_bundle(), checkpoint) as drawn:
        drawn.generate("a", on_step=lambda step: waiting.append(len(driver.queue)), **SIZE)
    assert waiting == [1] * (STEPS - 1) + [0]  # the kernel that adds the velocity, and nothing of the next step
    assert driver.calls["cuEventSynchronize"] == STEPS


def test_a_graph_serves_picture_after_picture(make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver) -> None:
    with pipeline(make_bundle(), checkpoint) as drawn:
        for seed in range(3):
            drawn.generate("a", seed=seed, **SIZE)
        assert driver.calls["cuStreamBeginCapture_v2"] == 1
        assert driver.calls["cuModuleLoadData"] == 1
        held = driver.free_bytes
        drawn.generate("a", width=96, height=64, steps=3)  # as many tokens
        assert driver.calls["cuStreamBeginCapture_v2"] == 1
        drawn.generate("a", width=64, height=64, steps=3)
        assert driver.calls["cuStreamBeginCapture_v2"] == 2
        assert driver.free_bytes < held
    del drawn
    assert driver.calls["cuModuleUnload"] == driver.calls["cuModuleLoadData"]
    assert driver.free_bytes == driver.total_bytes


def test_steps_are_timed_by_the_device(make_bundle: MakeBundle, checkpoint: Path) -> None:
    with pipeline(make_bundle(), checkpoint) as drawn:
        drawn.generate("a", **SIZE, **GUIDED)
        runs = [entry.seconds for entry in drawn.timings.entries if (entry.kind, entry.component) == ("run", "step")]
    assert len(runs) == 2 * STEPS
    # The played device takes a millisecond for each piece of work: run and mark, or Euler, time features, run and mark.
    assert runs[2:] == [pytest.approx(0.004), pytest.approx(0.002)] * (STEPS - 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_velocity_that_is_not_finite_is_named(
    make_bundle: MakeBundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    outputs, steps = NumpyEngine.outputs, 0

    def spoiled(self: NumpyEngine, inputs: Any) -> Any:
        nonlocal steps
        found = outputs(self, inputs)
        if self.contract.component == "step":
            steps += 1
            if steps == 3:
                found[0][0, -1, -1] = value
        return found

    monkeypatch.setattr(NumpyEngine, "outputs", spoiled)
    with (
        pipeline(make_bundle(), checkpoint) as drawn,
        pytest.raises(
            QwenImageError, match=rf"step 3 of {STEPS} \(sigma 0\.\d+\): the velocity is not finite; run the"
        ),
    ):
        drawn.generate("a", **SIZE)
    assert steps == STEPS


def test_a_step_without_room_is_taken_again_when_other_graphs_have_gone(
    make_bundle: MakeBundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second branch of the third step finds no room, with the first one's run on its way."""
    with pipeline(make_bundle(), checkpoint) as drawn:
        drawn._components.preload("prefix")
        held: Any = drawn._components._held
        step = drawn._components._get("step")
        enqueue, runs = step.enqueue, 0  # type: ignore[attr-defined]

        def crowded(*arguments: Any) -> None:
            nonlocal runs
            runs += 1
            if runs >= 6 and "prefix" in held:
                raise OutOfDeviceMemory("no room")
            enqueue(*arguments)

        monkeypatch.setattr(step, "enqueue", crowded)
        found = drawn.generate("a", **SIZE, **GUIDED)
        assert "prefix" not in held
        assert runs == 2 * STEPS + 2
    assert same_pictures(found, expected(checkpoint, **GUIDED))


@pytest.mark.parametrize("error", [KeyboardInterrupt, QwenImageError, Cancelled])
def test_what_is_on_its_way_is_waited_for_where_the_loop_is_left(
    make_bundle: MakeBundle,
    checkpoint: Path,
    driver: FakeDriver,
    error: type[BaseException],
) -> None:
    def leave(step: Step) -> None:
        if step.index == 2:
            assert driver.queue
            raise error

    with pipeline(make_bundle(), checkpoint) as drawn:
        with pytest.raises(error):
            drawn.generate("a", on_step=leave, **SIZE)
        assert not driver.queue
        assert same_pictures(drawn.generate("a", **SIZE), expected(checkpoint))
    del drawn
    assert driver.free_bytes == driver.total_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "when", "every"),
    [
        pytest.param({}, "before", 7, id="plain-before"),
        pytest.param({}, "after", 7, id="plain-after"),
        pytest.param(GUIDED, "before", 1, id="guidance-before"),
        pytest.param(GUIDED, "after", 7, id="guidance-after"),
    ],
)
def test_an_interruption_at_any_call_of_the_driver_leaves_nothing_behind(
    make_bundle: MakeBundle,
    checkpoint: Path,
    driver: FakeDriver,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    when: str,
    every: int,
) -> None:
    """The next picture is right; the played driver tells of memory that went, or was filled, too early.

    One of the sweeps takes every call of the driver, the others some of them.
    Python drops what is raised in a finalizer, so those calls are left out.
    """
    answer, left = FakeDriver.__getattr__, -1

    def answered(self: FakeDriver, name: str) -> Any:
        function = answer(self, name)

        def call(*given: Any) -> int:
            nonlocal left
            counted = not name.startswith("cuCtx") and not any(word in name for word in ("Free", "Destroy", "Unload"))
            left -= counted
            interrupted = counted and left == 0
            if interrupted and when == "before":
                raise KeyboardInterrupt
            code: int = function(*given)
            if interrupted:
                raise KeyboardInterrupt
            return code

        return call

    monkeypatch.setattr(FakeDriver, "__getattr__", answered)
    size = {**SIZE, "steps": 3}  # the first runs, the second is captured, and all others are as the third
    wanted = numpy_pipeline(checkpoint, Journal()).generate("a", **size, **arguments)
    with pipeline(make_bundle(), checkpoint) as drawn:
        for call in range(1, 1000, every):
            drawn._components.close()
            drawn.encode("a")
            drawn.encode("a grey square")
            drawn._components.preload("step")
            left = call
            try:
                drawn.generate("a", **size, **arguments)
            except KeyboardInterrupt:
                assert driver.captured is None
            over, left = left > 0, -1
            if over:
                break
            assert same_pictures(drawn.generate("a", **size, **arguments), wanted), f"call {call}"
    assert call > 50


def test_a_driver_without_its_compiler_is_told(make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver) -> None:
    driver.do_cuModuleLoadData = lambda module, image: 221  # type: ignore[method-assign,assignment,misc]
    with (
        pipeline(make_bundle(), checkpoint) as drawn,
        pytest.raises(QwenImageError, match=r"cuModuleLoadData with error 221.*needs libnvidia-ptxjitcompiler"),
    ):
        drawn.generate("a", **SIZE)


def test_what_fits_no_profile_is_told_before_a_copy(make_bundle: MakeBundle, driver: FakeDriver) -> None:
    engine: Any = make_bundle().load_engine("step", "tensorrt")
    inputs = step_inputs(engine.contract)
    latents, features = inputs.pop("latents"), inputs.pop("time_features")
    stages = SOLVERS["euler"].stages(np.array([1, 0], np.float32))
    for changed, words in (
        ({"latents": np.zeros((1, 500, 4), np.float32)}, "cos is"),
        ({"branches": ({**inputs, "extra": features},)}, "input extra is not known"),
    ):
        given = {"latents": latents, "branches": (inputs,), **changed}
        with pytest.raises(QwenImageError, match=words):
            engine.loop(LoopInputs(stages=stages, time_features=features, guidance=1.0, **given))
    assert driver.calls["cuMemHostAlloc"] == 0


def test_a_failure_of_the_device_is_told(make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver) -> None:
    driver.do_cuStreamSynchronize = lambda stream: 700  # type: ignore[method-assign,assignment,misc]
    with pipeline(make_bundle(), checkpoint) as drawn, pytest.raises(QwenImageError, match="error 700"):
        drawn.generate("a", **SIZE)
    driver.queue.clear()


def test_an_engine_that_is_closed_takes_no_steps(make_bundle: MakeBundle) -> None:
    engine: Any = make_bundle().load_engine("step", "tensorrt")
    assert isinstance(engine, LoopingEngine)
    engine.close()
    with pytest.raises(QwenImageError, match="step: this engine is closed"):
        engine.loop(None)


def test_a_caller_with_a_loop_of_its_own_has_every_steps_latents(make_bundle: MakeBundle, checkpoint: Path) -> None:
    def latents(drawn: QwenImage) -> list[Any]:
        return [step.latents for step in drawn.sample(drawn.encode("a"), **SIZE)]

    with pipeline(make_bundle(), checkpoint) as drawn:
        found = latents(drawn)
    wanted = latents(numpy_pipeline(checkpoint, Journal()))
    np.testing.assert_array_equal(found, wanted)


def test_the_benchmark_compares_both_loops(
    make_bundle: MakeBundle, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu.loop import COUNT, STEPS, kernel_row, loop_row

    assert COUNT % 256
    assert kernel_row() == {"way": "solver kernel", "steps": STEPS, "equal": True, "fault_found": True}
    engine: Any = make_bundle().load_engine("step", "tensorrt")
    row = loop_row(engine, step_inputs(engine.contract))
    assert row["equal"]
    assert row["finite"]
    assert row["device_run_ms"] > 0
