"""Requests on both CPU engines: cancelled, left, drawn by two threads; the pipeline goes on until it is closed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qwen_image_engine.runtime.component_pool import Memory
from qwen_image_engine.runtime.pipeline import QwenImage
from tests.support.request_checks import SMALL, check_requests


@contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Let OpenVINO compile each graph once, and read it from its own cache in `folder` when it is loaded again.

    "sequential" loads some forty graphs here, and compiling one takes a quarter of a second.
    """
    from qwen_image_engine.engines.openvino.package import core

    core().set_property({"CACHE_DIR": str(folder)})
    try:
        yield
    finally:
        core().set_property({"CACHE_DIR": ""})


@pytest.mark.parametrize("memory", ["resident", "sequential"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_request_that_ends_badly_harms_no_other(
    exported: Callable[..., Path], tmp_path: Path, engine: str, memory: Memory
) -> None:
    pytest.importorskip(engine)
    with ExitStack() as stack:
        if (engine, memory) == ("openvino", "sequential"):
            stack.enter_context(compiled_once(tmp_path))
        pipeline = stack.enter_context(QwenImage.load(exported(), engine=engine, memory=memory, threads=1))
        pipeline.generate("another", **SMALL)  # a graph from the cache rounds otherwise than the one compiled for it
        check_requests(pipeline)
