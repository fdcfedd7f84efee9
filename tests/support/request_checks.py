"""Uses of a pipeline that end badly, each followed by a picture that must be right; for pipelines on any engines."""

import threading
from typing import Any

import numpy as np
import pytest

from qwen_image_engine.engines.core.errors import Cancelled, QwenImageError
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.sampling.step import Step

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 3}


def check_requests(pipeline: QwenImage) -> None:
    """Cancel, raise, draw from two threads; close the pipeline at the end."""
    request = pipeline.prepare("a", seed=3, **SMALL)
    expected = pipeline.generate(request)[0].latents

    def same() -> None:
        assert np.array_equal(pipeline.generate(request)[0].latents, expected)

    _cancelled_before_it_starts_and_twice(pipeline)
    same()
    _cancelled_at_a_step(pipeline)
    same()
    _a_caller_that_raises(pipeline)
    same()
    _a_loop_that_is_left(pipeline)
    same()
    _two_threads(pipeline, expected)
    pipeline.close()
    pipeline.close()
    for call in (lambda: pipeline.generate(request), lambda: pipeline.encode("a"), pipeline.preload):
        with pytest.raises(QwenImageError, match="this pipeline is closed; load it again"):
            call()


def _cancelled_before_it_starts_and_twice(pipeline: QwenImage) -> None:
    request = pipeline.prepare("a", **SMALL)
    request.cancel()
    request.cancel()
    with pytest.raises(Cancelled):
        pipeline.generate(request)


def _cancelled_at_a_step(pipeline: QwenImage) -> None:
    request = pipeline.prepare("a", **SMALL)
    told: list[int] = []

    def cancel(step: Step) -> None:
        told.append(step.index)
        assert step.preview().shape == (1, 16, 16, 4)
        request.cancel()

    with pytest.raises(Cancelled):
        pipeline.generate(request, on_step=cancel)
    assert told == [0]


def _a_caller_that_raises(pipeline: QwenImage) -> None:
    def broken(step: Step) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pipeline.generate("a", on_step=broken, **SMALL)


def _a_loop_that_is_left(pipeline: QwenImage) -> None:
    for step in pipeline.sample(pipeline.encode("a"), **SMALL):
        assert np.isfinite(step.latents).all()
        break


def _two_threads(pipeline: QwenImage, expected: Any) -> None:
    drawn: dict[int, Any] = {}

    def draw(number: int) -> None:
        drawn[number] = pipeline.generate("a", seed=3, **SMALL)[0].latents

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert all(np.array_equal(drawn[number], expected) for number in range(2))
