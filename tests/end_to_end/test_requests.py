"""Requests on both CPU engines: cancelled, left, drawn by two threads; the pipeline goes on until it is closed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_image_engine.runtime.pipeline import QwenImage
from tests.support.request_checks import check_requests


@pytest.mark.parametrize("memory", ["resident", "sequential"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_request_that_ends_badly_harms_no_other(exported: Callable[..., Path], engine: str, memory: str) -> None:
    pytest.importorskip(engine)
    with QwenImage.load(exported(), engine=engine, memory=memory, threads=1) as pipeline:  # type: ignore[arg-type]
        check_requests(pipeline)
