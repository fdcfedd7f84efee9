"""The pipeline on toy engines whose keys and values stay on a device: the pictures are those of the host's arrays."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_image_engine.engines.core.device_array import DeviceArray, on_host
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda.driver import DeviceInfo
from tests.support.images import patches
from tests.support.numpy_engines import FACTS, Journal, numpy_pipeline, same_pictures

REFERENCES = [patches(90, 60), patches(50, 70, "RGB", 1)]


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"references": REFERENCES, "reference_resolution": 64},
        {"num_images": 3, "guidance": 2.5, "negative_prompt": "grey"},
        {"references": REFERENCES, "reference_resolution": 64, "num_images": 2},
    ],
    ids=["text", "references", "batch and guidance", "references and batch"],
)
def test_pictures_are_equal_bit_for_bit(checkpoint: Path, request_: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"width": 64, "height": 96, "steps": 3, **request_}
    on_the_host = numpy_pipeline(checkpoint, Journal()).generate("a red circle", **arguments)
    journal = Journal()
    pipeline = numpy_pipeline(checkpoint, journal, keeps_on_device=True)
    assert same_pictures(on_the_host, pipeline.generate("a red circle", **arguments))
    before = journal.counts()["run prefix"]
    assert same_pictures(on_the_host, pipeline.generate("a red circle", **arguments))
    assert journal.counts()["run prefix"] == before  # what was kept is used again


def test_a_conditioning_holds_them_and_counts_their_bytes(checkpoint: Path) -> None:
    kept = numpy_pipeline(checkpoint, Journal(), keeps_on_device=True)
    references = kept.read_references(REFERENCES, 64)
    conditioning = kept.encode("a", references)
    expected = numpy_pipeline(checkpoint, Journal()).encode("a", references)
    assert conditioning.nbytes == expected.nbytes
    for name, values in conditioning.cache.items():
        assert isinstance(values, DeviceArray)
        np.testing.assert_array_equal(on_host(values), on_host(expected.cache[name]))


def test_memory_is_the_gpus(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values are held against the GPU's free memory, in 16 bits, and the host's does not count."""
    journal = Journal()
    pipeline = numpy_pipeline(checkpoint, journal, keeps_on_device=True, engine="tensorrt")
    needed = pipeline.prefix_tokens("a") * FACTS.cache_token_bytes // 2
    gpu = DeviceInfo("A GPU", "9.0", 13000, total_bytes=1 << 30, free_bytes=needed - 1)
    where = "qwen_image_engine.runtime"
    monkeypatch.setattr(f"{where}.conditioning.reachable_memory_bytes", lambda: 1)
    monkeypatch.setattr(f"{where}.denoiser.reachable_memory_bytes", lambda: 1)
    monkeypatch.setattr(f"{where}.conditioning.device_info", lambda: gpu)
    words = rf"take {needed} bytes and {needed - 1} bytes of the GPU are free; .*--reference-res.*--memory sequential"
    with pytest.raises(QwenImageError, match=words):
        pipeline.encode("a")
    assert journal.events == []
    monkeypatch.setattr(f"{where}.conditioning.device_info", lambda: replace(gpu, free_bytes=needed))
    assert len(pipeline.generate("a", width=64, height=64, steps=2, num_images=2)) == 2


def test_a_spoiled_prefix_shows_in_the_velocity(checkpoint: Path) -> None:
    journal = Journal(spoiled="prefix")
    pipeline = numpy_pipeline(checkpoint, journal, keeps_on_device=True)
    with pytest.raises(QwenImageError, match="velocity is not finite"):
        pipeline.generate("a", width=64, height=64, steps=2)
