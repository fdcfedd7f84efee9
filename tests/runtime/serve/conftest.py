"""Servers of toy pipelines."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_image_engine.runtime.pipeline import QwenImage
from tests.support.numpy_engines import Journal, numpy_pipeline
from tests.support.served import Gate, Served, served


@pytest.fixture
def twin(checkpoint: Path) -> QwenImage:
    """A pipeline like the server's, for what a picture has to be."""
    return numpy_pipeline(checkpoint, Journal())


@pytest.fixture
def server(pipeline: QwenImage) -> Iterator[Served]:
    """A server of the toy pipeline."""
    with served(pipeline) as found:
        yield found


@pytest.fixture
def gate(pipeline: QwenImage) -> Iterator[Gate]:
    """A gate before each step of the pipeline; ask for it before `server`."""
    found = Gate(pipeline)
    yield found
    found.open()
