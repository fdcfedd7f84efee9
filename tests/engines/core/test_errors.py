"""The remedy that an error names fits its cause."""

from pathlib import Path

import pytest

from qwen_image_engine.engines.core.errors import load_failure, one_line

MODEL = Path("bundle/step.onnx")


@pytest.mark.parametrize("text", ["std::bad_alloc", "failed to map segment: Cannot allocate memory", "out of memory"])
def test_a_graph_that_memory_does_not_hold(text: str) -> None:
    found = str(load_failure("step", MODEL, "OpenVINO", RuntimeError(text)))
    assert "not enough memory" in found
    assert "again" not in found


@pytest.mark.parametrize("text", ["Unsupported model IR version: 11, max supported IR version: 10", "is a symlink"])
def test_a_graph_that_a_backend_refuses(text: str) -> None:
    found = str(load_failure("step", MODEL, "ONNX Runtime", RuntimeError(text)))
    assert text in found
    assert "again" not in found
    assert "qwen-image doctor" in found


def test_text_that_is_no_utf8_is_escaped() -> None:
    with pytest.raises(UnicodeDecodeError) as caught:
        b"no tensor \xffsqrt\nfor the node".decode()
    assert one_line(caught.value) == r"no tensor \xffsqrt for the node"
