"""The whole pipeline on the reference engines against diffusers' QwenImage21Pipeline, in fp32 on random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.text.prompt import MAX_PROMPT_TOKENS
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer
from tests.support.oracles import load_pipeline

# Found: 2e-7 to 7e-7 on these weights. What one fp32 step leaves (1e-7) grows with steps and guidance; a wrong term,
# position or sigma is 1e-3 and more.
TOLERANCE = 1e-4

THOUSAND_TOKENS = "a thousand tokens"  # stands for a prompt of that length: tokenizers differ
STEPS = 4  # of the base schedule; a Turbo checkpoint has its own 8

# Prompt, negative prompt, guidance, width, height, images.
RUNS = {
    "square": ("a red circle", None, 1.0, 64, 64, 1),
    "wide 6:1, empty prompt": ("", None, 1.0, 192, 32, 1),
    "tall 1:6, guidance": ("写着“你好”的招牌", "blurred, grey and dull", 3.0, 32, 192, 1),
    "guidance with an empty negative prompt": ("a blue square", "", 1.5, 64, 32, 1),
    "thousand tokens": (THOUSAND_TOKENS, None, 1.0, 64, 32, 1),
    "two images": ("two circles", None, 1.0, 64, 96, 2),
    "two images, guidance": ("two circles", "three", 2.0, 32, 64, 2),
}
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "base": {"name": "narrow"},
    "turbo": {"name": "odd", "turbo": True},
    "third": {"name": "deep"},
}


@pytest.fixture(scope="module", params=CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def folder(request: pytest.FixtureRequest, random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(**request.param)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    return load_pipeline(folder)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> QwenImage:
    return reference_pipeline(folder)


@pytest.fixture(scope="module")
def thousand_tokens(folder: Path) -> str:
    tokenizer = load_tokenizer(folder)
    prompt = "a red circle left of a blue square "
    while (length := len(tokenizer.encode(prompt).ids)) < 1000:
        prompt += "and a green triangle "
    assert length <= MAX_PROMPT_TOKENS
    return prompt


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_final_latents(
    oracle: Any,
    pipeline: QwenImage,
    thousand_tokens: str,
    run: tuple[Any, ...],
    within: Callable[[str, float, float], None],
) -> None:
    prompt, negative, guidance, width, height, images = run
    prompt = thousand_tokens if prompt == THOUSAND_TOKENS else prompt
    tokens = width // 16 * height // 16
    noise = np.random.default_rng(tokens).standard_normal((images, tokens, pipeline.facts.channels), np.float32)
    expected = oracle(
        prompt=prompt,
        negative_prompt=negative,
        true_cfg_scale=guidance,
        width=width,
        height=height,
        num_inference_steps=STEPS,
        num_images_per_prompt=images,
        latents=torch.from_numpy(noise),
        output_type="latent",
    ).images.numpy()
    *_, last = pipeline.sample(
        pipeline.encode(prompt),
        negative=None if negative is None else pipeline.encode(negative),
        guidance=guidance,
        width=width,
        height=height,
        steps=steps(pipeline),
        num_images=images,
        latents=noise,
    )
    assert last.latents.shape == expected.shape
    error = float(np.linalg.norm(last.latents - expected) / np.linalg.norm(expected))
    within("final latents of the pipeline against diffusers, relative L2", error, TOLERANCE)


def test_pictures_of_the_same_seed(oracle: Any, pipeline: QwenImage) -> None:
    """Noise, decoder and rounding included: two images of 64x96 from one seed, and with guidance."""
    expected = oracle(
        prompt="two circles",
        negative_prompt="grey",
        true_cfg_scale=2.0,
        width=64,
        height=96,
        num_inference_steps=STEPS,
        num_images_per_prompt=2,
        generator=torch.Generator("cpu").manual_seed(11),
        output_type="np",
    ).images
    pictures = pipeline.generate(
        "two circles",
        negative_prompt="grey",
        guidance=2.0,
        width=64,
        height=96,
        steps=steps(pipeline),
        seed=11,
        num_images=2,
    )
    for picture, image in zip(pictures, expected, strict=True):
        assert picture.rgba.shape == image.shape == (96, 64, 4)
        # In fp32 both round to bytes from values that differ by 1e-6: where one lies on a rounding edge, by one byte.
        difference = np.abs(picture.rgba - image * 255)
        assert difference.max() <= 0.501
    assert np.abs(pictures[0].rgba.astype(int) - pictures[1].rgba.astype(int)).max() > 1


def test_sequential_networks_draw_the_same(folder: Path, pipeline: QwenImage) -> None:
    arguments: dict[str, Any] = {"width": 64, "height": 32, "steps": steps(pipeline), "seed": 3}
    resident = pipeline.generate("a red circle", **arguments)[0]
    with reference_pipeline(Checkpoint.open(folder), memory="sequential") as sequential:
        assert np.array_equal(sequential.generate("a red circle", **arguments)[0].latents, resident.latents)


def test_bfloat16_checkpoints_run_in_fp32(random_checkpoint: Callable[..., Path]) -> None:
    """Weights and embeddings in bf16 are read exactly, so the oracle with weights cast to fp32 is the same network."""
    folder = random_checkpoint(dtype="bfloat16", max_shard_size="500KB", spelling="transformers4")
    found = reference_pipeline(folder).generate("a red circle", width=64, height=32, steps=STEPS, seed=5)[0]
    expected = load_pipeline(folder)(
        prompt="a red circle",
        width=64,
        height=32,
        num_inference_steps=STEPS,
        generator=torch.Generator("cpu").manual_seed(5),
        output_type="latent",
    ).images.numpy()[0]
    assert np.linalg.norm(found.latents - expected) <= TOLERANCE * np.linalg.norm(expected)


def steps(pipeline: QwenImage) -> int | None:
    return None if pipeline.schedule.sample_sigmas else STEPS
