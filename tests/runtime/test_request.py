"""Requests: prepared before anything runs, told of every step, previewed, cancelled, and drawn by several threads."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_image_engine.engines.core.errors import Cancelled, QwenImageError, UsageError
from qwen_image_engine.runtime.images.png import reduced
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.request import Request
from qwen_image_engine.runtime.sampling.step import Step
from tests.support.numpy_engines import Journal, NumpyEngine, numpy_pipeline, same_pictures

SMALL: dict[str, Any] = {"width": 64, "height": 96, "steps": 3}


class TestPrepare:
    def test_no_network_is_loaded_and_the_pictures_are_the_same(self, pipeline: QwenImage, journal: Journal) -> None:
        request = pipeline.prepare("a", negative_prompt="b", guidance=2.0, seed=5, num_images=2, **SMALL)
        assert journal.events == []
        assert (request.width, request.height, request.inputs.steps) == (64, 96, 3)
        assert request.prefix_tokens == pipeline.prefix_tokens("a")
        drawn = pipeline.generate(request)
        same = pipeline.generate("a", negative_prompt="b", guidance=2.0, seed=5, num_images=2, **SMALL)
        assert same_pictures(drawn, same)

    def test_noise_is_drawn_when_it_is_needed(self, pipeline: QwenImage, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: list[int] = []
        where = "qwen_image_engine.runtime.sampling.inputs.draw_noise"
        monkeypatch.setattr(where, lambda shape, seed: drawn.append(seed) or np.zeros(shape, np.float32))
        request = pipeline.prepare("a", seed=3, **SMALL)
        others = [request.with_seed(seed) for seed in (4, 5)]
        assert drawn == []
        for item in (request, *others):
            pipeline.generate(item)
        assert drawn == [3, 4, 5]

    def test_another_seed_is_another_request(self, pipeline: QwenImage) -> None:
        first = pipeline.prepare("a", seed=1, **SMALL)
        second = first.with_seed(2)
        first.cancel()
        assert (first.cancelled, second.cancelled) == (True, False)
        assert same_pictures(pipeline.generate(second), pipeline.generate("a", seed=2, **SMALL))
        with pytest.raises(UsageError, match="is out of range"):
            first.with_seed(2**64)
        given = pipeline.prepare("a", latents=np.zeros((1, 24, 4), np.float32), **SMALL)
        with pytest.raises(UsageError, match="latents were given"):
            given.with_seed(1)

    def test_options_beside_a_request_are_refused(self, pipeline: QwenImage) -> None:
        with pytest.raises(UsageError, match="seed beside a prepared request: give them to prepare"):
            pipeline.generate(pipeline.prepare("a", **SMALL), seed=4)


class TestSteps:
    def test_every_step_is_told(self, pipeline: QwenImage) -> None:
        steps: list[Step] = []
        pipeline.generate("a", on_step=steps.append, **SMALL)
        assert [step.index for step in steps] == [0, 1, 2]
        assert {step.steps for step in steps} == {3}
        assert steps[0].sigma > steps[1].sigma > steps[2].sigma == 0
        assert all(step.seconds >= 0 for step in steps)

    def test_the_last_preview_is_the_picture(self, pipeline: QwenImage) -> None:
        previews: list[Any] = []
        (picture,) = pipeline.generate("a", on_step=lambda step: previews.append(step.preview(1)), **SMALL)
        assert [preview.shape for preview in previews] == [(1, 96, 64, 4)] * 3
        assert np.array_equal(previews[-1][0], picture.rgba)

    def test_the_predicted_picture_is_where_the_velocity_points(self, pipeline: QwenImage) -> None:
        conditioning = pipeline.encode("a")
        velocity = pipeline.denoiser(conditioning, width=64, height=96)
        latents = np.random.default_rng(0).standard_normal((1, 24, 4), np.float32)
        sigma = 1.0
        for step in pipeline.sample(conditioning, latents=latents, **SMALL):
            expected = latents - np.float32(sigma) * velocity(latents, sigma)
            np.testing.assert_allclose(step.predicted, expected, rtol=1e-5, atol=1e-6)
            latents, sigma = step.latents, step.sigma

    @pytest.mark.parametrize(("width", "height"), [(64, 96), (160, 32), (1120, 32)])
    def test_a_quarter_of_the_size(self, pipeline: QwenImage, width: int, height: int) -> None:
        previews: list[Any] = []
        (picture,) = pipeline.generate(
            "a", on_step=lambda step: previews.append(step.preview()), width=width, height=height, steps=2
        )
        assert [preview.shape for preview in previews] == [(1, height // 4, width // 4, 4)] * 2
        assert np.array_equal(previews[-1][0], reduced(picture.rgba, 4))

    def test_previews_are_a_stage_of_their_own(self, pipeline: QwenImage) -> None:
        pipeline.generate("a", **SMALL)
        pipeline.timings.clear()
        pipeline.generate("a", on_step=lambda step: step.preview() if step.index else None, **SMALL)
        kinds = [(entry.kind, entry.component) for entry in pipeline.timings.entries]
        assert kinds.count(("preview", "preview")) == 2
        assert kinds.count(("run", "vae_decoder_mid")) == kinds.count(("run", "vae_decoder_up")) == 1
        assert "preview_s" in pipeline.timings.stages()

    @pytest.mark.parametrize("scale", [0.5, 2, 0])
    def test_other_scales_are_refused(self, pipeline: QwenImage, scale: float) -> None:
        with pytest.raises(UsageError, match=r"a preview at scale .*expected 1 or 1/4"):
            pipeline.generate("a", on_step=lambda step: step.preview(scale), **SMALL)


def cancel_at(request: Request, index: int) -> Callable[[Step], None]:
    def on_step(step: Step) -> None:
        if step.index == index:
            request.cancel()

    return on_step


class TestCancelling:
    def test_raising_in_on_step_ends_the_run_and_the_pipeline_goes_on(
        self, pipeline: QwenImage, journal: Journal
    ) -> None:
        def stop(step: Step) -> None:
            if step.index == 1:
                raise Cancelled("enough")

        with pytest.raises(Cancelled, match="enough"):
            pipeline.generate("a", on_step=stop, **SMALL)
        assert journal.counts()["run step"] == 2
        assert journal.counts()["run vae_decoder_mid"] == 0
        assert pipeline.generate("a", **SMALL)

    def test_whatever_on_step_raises_arrives(self, pipeline: QwenImage) -> None:
        def broken(step: Step) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            pipeline.generate("a", on_step=broken, **SMALL)
        assert pipeline.generate("a", **SMALL)

    @pytest.mark.parametrize("index", [0, 1, 2])
    def test_a_cancelled_request_takes_no_other_step(self, pipeline: QwenImage, journal: Journal, index: int) -> None:
        request = pipeline.prepare("a", **SMALL)
        with pytest.raises(Cancelled, match="the request was cancelled"):
            pipeline.generate(request, on_step=cancel_at(request, index))
        assert journal.counts()["run step"] == index + 1
        assert journal.counts()["run vae_decoder_mid"] == 0
        assert pipeline.generate(request.with_seed(0))

    def test_before_it_starts_and_twice(self, pipeline: QwenImage, journal: Journal) -> None:
        request = pipeline.prepare("a", **SMALL)
        request.cancel()
        request.cancel()
        for _ in range(2):
            with pytest.raises(Cancelled):
                pipeline.generate(request)
        assert journal.events == []

    def test_only_the_request_itself_is_cancelled(self, checkpoint: Path) -> None:
        """Two pipelines in two threads, one request each; the first waits in a step until the second has been drawn."""
        held, go_on = threading.Event(), threading.Event()
        results: dict[str, Any] = {}

        def wait(step: Step) -> None:
            held.set()
            assert go_on.wait(60)

        def draw() -> None:
            pipeline = numpy_pipeline(checkpoint, Journal())
            request = pipeline.prepare("a", **SMALL)
            results["request"] = request
            try:
                pipeline.generate(request, on_step=wait)
            except Cancelled as error:
                results["error"] = error

        thread = threading.Thread(target=draw)
        thread.start()
        assert held.wait(60)
        results["request"].cancel()
        assert numpy_pipeline(checkpoint, Journal()).generate("b", **SMALL)
        go_on.set()
        thread.join(60)
        assert isinstance(results["error"], Cancelled)


class TestThreads:
    def test_calls_wait_for_one_another(self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        journal, inside, most = Journal(), 0, 0
        run = NumpyEngine.run

        def counted(self: NumpyEngine, inputs: Any) -> Any:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            time.sleep(0.001)
            try:
                return run(self, inputs)
            finally:
                inside -= 1

        monkeypatch.setattr(NumpyEngine, "run", counted)
        pipeline = numpy_pipeline(checkpoint, journal, memory="sequential")
        drawn: dict[int, Any] = {}
        threads = [
            threading.Thread(target=lambda seed=seed: drawn.update({seed: pipeline.generate("a", seed=seed, **SMALL)}))
            for seed in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert most == 1
        alone = numpy_pipeline(checkpoint, Journal())
        assert all(same_pictures(drawn[seed], alone.generate("a", seed=seed, **SMALL)) for seed in range(4))

    def test_a_request_that_waits_can_be_cancelled(self, pipeline: QwenImage) -> None:
        request = pipeline.prepare("b", **SMALL)
        results: list[BaseException] = []

        def draw() -> None:
            try:
                pipeline.generate(request)
            except Cancelled as error:
                results.append(error)

        steps = pipeline.sample(pipeline.encode("a"), **SMALL)
        next(steps)
        thread = threading.Thread(target=draw)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()  # the loop over `sample` is one call
        request.cancel()
        thread.join(60)
        assert len(results) == 1
        assert len(list(steps)) == 2

    def test_a_loop_that_is_left_lets_others_go_on(self, pipeline: QwenImage) -> None:
        steps = pipeline.sample(pipeline.encode("a"), **SMALL)
        next(steps)
        drawn: list[Any] = []
        thread = threading.Thread(target=lambda: drawn.extend(pipeline.generate("b", **SMALL)))
        thread.start()
        steps.close()  # type: ignore[attr-defined]
        thread.join(60)
        assert len(drawn) == 1

    def test_closing_waits_for_the_run(self, pipeline: QwenImage) -> None:
        threads: list[threading.Thread] = []

        def close(step: Step) -> None:
            if not threads:
                threads.append(threading.Thread(target=pipeline.close))
                threads[0].start()

        assert len(pipeline.generate("a", on_step=close, **SMALL)) == 1
        threads[0].join(60)
        with pytest.raises(QwenImageError, match="closed"):
            pipeline.generate("a", **SMALL)
