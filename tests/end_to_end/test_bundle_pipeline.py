"""The pipeline on ONNX Runtime, from an exported bundle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.component_pool import Memory
from qwen_image_engine.runtime.pipeline import QwenImage

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

RUN: dict[str, Any] = {"width": 96, "height": 64, "steps": 3, "seed": 7, "num_images": 2}


def latents(pipeline: QwenImage, **changes: Any) -> Any:
    return np.stack([picture.latents for picture in pipeline.generate("a red circle", **RUN, **changes)])


def test_sequential_equals_resident(exported: Callable[..., Path]) -> None:
    drawn = []
    for memory in get_args(Memory):
        with QwenImage.load(exported(), memory=memory, threads=1) as pipeline:
            drawn.append(latents(pipeline, negative_prompt="grey", guidance=2.0))
    assert np.array_equal(*drawn)


def test_it_draws_what_the_reference_draws(
    exported: Callable[..., Path], random_checkpoint: Callable[..., Path]
) -> None:
    from qwen_image_engine.reference.pipeline import reference_pipeline

    with QwenImage.load(exported(), threads=1) as pipeline:
        found = latents(pipeline)
    expected = latents(reference_pipeline(random_checkpoint()))
    # fp32 on both sides: 1e-7 found; what counts as equal for teacher-forced steps is 1e-4.
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


def test_what_cannot_be_loaded(exported: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown engine 'abacus'"):
        QwenImage.load(exported(), engine="abacus")
    with pytest.raises(UsageError, match="expected resident or sequential"):
        QwenImage.load(exported(), memory="frugal")  # type: ignore[arg-type]
    with pytest.raises(QwenImageError, match="no bundle"):
        QwenImage.load(tmp_path)
    with pytest.raises(QwenImageError, match="has no component joint; export again"):
        Bundle.open(exported()).load_engine("joint", "onnxruntime")


def test_weights_that_memory_cannot_hold_are_refused_by_name(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_image_engine.runtime.bundle.bundle.reachable_memory_bytes", lambda: 1000)
    with pytest.raises(QwenImageError, match=r"text_encoder: its weights take \d+ bytes, .* 1000 bytes of memory"):
        QwenImage.load(exported())
