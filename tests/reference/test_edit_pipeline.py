"""The whole pipeline with reference images against diffusers' QwenImage21Pipeline, in fp32 on random weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.transformers import transformer_qwenimage21
from PIL import Image

from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.pipeline import QwenImage
from tests.support.images import patches
from tests.support.oracles import load_edit_pipeline

pytestmark = pytest.mark.slow

# As for text alone, in `test_pipeline`.
TOLERANCE = 1e-4
FIGURE = "final latents of an edit against diffusers, relative L2"

RESOLUTION = 288  # near the least that the processor leaves alone in every aspect ratio below
STEPS = 3  # of the base schedule; a Turbo checkpoint has its own 8

ONE = [patches(400, 300)]
THREE = [patches(300, 400, "RGB", 1), patches(500, 200, "RGBA", 2), patches(256, 256, "RGB", 3)]
TEN = [patches(300 + 40 * index, 360, ("RGB", "RGBA")[index % 2], index) for index in range(10)]

# Images, negative prompt, guidance, images drawn at once.
RUNS: dict[str, tuple[list[Image.Image], str | None, float, int]] = {
    "one RGBA": (ONE, None, 1.0, 1),
    "one, guidance": (ONE, "grey", 3.0, 1),
    "three": (THREE, None, 1.0, 2),
    "three, guidance": (THREE, "", 3.0, 1),
}


def check(
    oracle: Any,
    pipeline: QwenImage,
    run: tuple[Sequence[Image.Image], str | None, float, int],
    within: Callable[[str, float, float], None],
    steps: int = STEPS,
) -> None:
    images, negative, guidance, count = run
    references = pipeline.read_references(images, RESOLUTION)
    width, height = references.size
    tokens = width // 16 * (height // 16)
    noise = np.random.default_rng(tokens).standard_normal((count, tokens, pipeline.facts.channels), np.float32)
    prompt = "make the first one 红色, please"
    with torch.inference_mode():
        expected = oracle(
            prompt=prompt,
            image=list(images),
            negative_prompt=negative,
            true_cfg_scale=guidance,
            num_inference_steps=steps,
            num_images_per_prompt=count,
            latents=torch.from_numpy(noise),
            output_resolution=RESOLUTION,
            output_type="latent",
        ).images.numpy()
    pictures = pipeline.generate(
        prompt,
        negative_prompt=negative,
        references=images,
        reference_resolution=RESOLUTION,
        guidance=guidance,
        steps=None if pipeline.schedule.sample_sigmas else steps,
        num_images=count,
        latents=noise,
    )
    assert {(picture.parameters.width, picture.parameters.height) for picture in pictures} == {(width, height)}
    found = np.stack([picture.latents for picture in pictures])
    assert found.shape == expected.shape
    within(FIGURE, float(np.linalg.norm(found - expected) / np.linalg.norm(expected)), TOLERANCE)


@pytest.fixture(scope="module", params=[{"name": "narrow"}, {"name": "odd", "turbo": True}], ids=["base", "turbo"])
def folder(request: pytest.FixtureRequest, random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(**request.param)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    return load_edit_pipeline(folder)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> QwenImage:
    return reference_pipeline(folder)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_final_latents(
    oracle: Any,
    pipeline: QwenImage,
    run: tuple[list[Image.Image], str | None, float, int],
    within: Callable[[str, float, float], None],
) -> None:
    check(oracle, pipeline, run, within)


def test_ten_references(random_checkpoint: Callable[..., Path], within: Callable[[str, float, float], None]) -> None:
    """In two steps: the first computes the keys and values of the references, the second reads them."""
    folder = random_checkpoint("deep")
    check(load_edit_pipeline(folder), reference_pipeline(folder), (TEN, None, 1.0, 1), within, steps=2)


def test_bidirectional_attention(
    random_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    within: Callable[[str, float, float], None],
) -> None:
    """diffusers without `causal_condition`, whose attention is unmasked where there are no segments."""
    folder = random_checkpoint("narrow")
    oracle = load_edit_pipeline(folder)
    oracle.transformer.register_to_config(causal_condition=False)
    monkeypatch.setattr(transformer_qwenimage21, "_qwenimage21_prefix_segments", lambda *_: [])
    unkept = type(oracle).__call__
    pipeline = reference_pipeline(Checkpoint.open(folder, attention="bidirectional"))

    def call(**options: Any) -> Any:
        return unkept(oracle, **options, use_kv_cache=False)

    check(call, pipeline, (THREE[:2], "grey", 2.0, 2), within)
    assert pipeline.facts.cache_token_bytes == 0
    assert {entry.component for entry in pipeline.timings.entries} >= {"joint", "vision", "vae_encoder"}
    assert not {"prefix", "step"} & {entry.component for entry in pipeline.timings.entries}
