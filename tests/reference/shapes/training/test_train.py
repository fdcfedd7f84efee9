"""The whole recipe at a few steps, and the checkpoint that it made."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.reference.shapes.training import decoder, edit_reading, encoder, tokenizer, transformer, vae
from qwen_image_engine.reference.shapes.training import train as recipe
from qwen_image_engine.reference.shapes.training.latent_pool import PoolSize
from qwen_image_engine.reference.shapes.training.muon import orthogonalised
from qwen_image_engine.reference.shapes.training.train import train
from tests.support.paths import SHAPES as COMMITTED


@pytest.mark.slow
def test_the_recipe_writes_a_checkpoint_that_diffusers_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae, "PHASES", ((32, 2, 2),))
    monkeypatch.setattr(vae, "STEPS", 2)
    monkeypatch.setattr(vae, "POOL", 4)
    monkeypatch.setattr(decoder, "PHASES", ((32, 2, 2),))
    monkeypatch.setattr(decoder, "POOL", 4)
    monkeypatch.setattr(tokenizer, "PROMPTS", 200)
    monkeypatch.setattr(encoder, "STEPS", 2)
    monkeypatch.setattr(encoder, "BATCH", 4)
    monkeypatch.setattr(edit_reading, "STEPS", 2)
    monkeypatch.setattr(edit_reading, "BATCH", 6)
    pool = (PoolSize(64, 64, scenes=6, share=0.5, batch=4), PoolSize(96, 64, scenes=6, share=0.5, batch=4))
    course = transformer.Course(pool, (0.4, 0.3, 0.3), steps=4, small_only=0.25, rate=1e-3)
    monkeypatch.setattr(recipe, "COURSES", (course, dataclasses.replace(course, steps=2)))
    monkeypatch.setattr(recipe, "EDITS", dataclasses.replace(course, edits=pool))
    folder = tmp_path / "shapes"
    train(folder, seed=0, device="cpu", work=tmp_path / "work")
    (picture,) = reference_pipeline(folder).generate("a red circle", width=64, height=32, steps=2)
    assert picture.rgba.shape == (32, 64, 4)
    (edited,) = reference_pipeline(folder).generate(
        "Make it blue", references=[Image.fromarray(picture.rgba)], reference_resolution=45, steps=2
    )
    assert edited.rgba.shape == (32, 64, 4)

    from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel
    from transformers import Qwen3VLForConditionalGeneration

    QwenImage21Transformer2DModel.from_pretrained(folder / "transformer")
    _, found = AutoencoderKLQwenImage21.from_pretrained(folder / "vae", output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    _, found = Qwen3VLForConditionalGeneration.from_pretrained(folder / "text_encoder", output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    again = tmp_path / "again"
    train(again, seed=0, device="cpu", work=tmp_path / "work")  # every stage is found, none is trained
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (again / weights).read_bytes() == (folder / weights).read_bytes()
    more = tmp_path / "more"
    train(more, seed=0, device="cpu", work=None, trained=folder, minutes=1)
    assert (more / weights).read_bytes() != (folder / weights).read_bytes()
    assert Checkpoint.open(more).config_sha256() != ""


def test_muon_updates_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 24, 8, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrices))
    # The quintic iteration converges to between 0.68 and 1.13, not to 1; bf16 adds a little.
    assert values.min() > 0.6
    assert values.max() < 1.25
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(orthogonalised(matrices).flatten(1), (u @ vt).flatten(1))
    assert cosine.min() > 0.97


def test_the_committed_checkpoint_is_small_and_draws_what_it_is_asked() -> None:
    checkpoint = Checkpoint.open(COMMITTED)
    assert sum(component.parameters for component in checkpoint.components.values()) * 2 <= 16_000_000
    (picture,) = reference_pipeline(checkpoint).generate(
        "a red circle in the center on a white background", width=128, height=128, steps=20
    )
    red, corner = picture.rgba[60:68, 60:68].mean((0, 1)), picture.rgba[:8, :8].mean((0, 1))
    assert np.abs(red - (220, 35, 40, 255)).max() < 40
    assert np.abs(corner - (250, 250, 250, 255)).max() < 20
