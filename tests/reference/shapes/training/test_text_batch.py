"""Training on a padded batch with references, which computes the same as the pipeline for each prompt."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.reference.shapes.scenes.edits import random_edit
from qwen_image_engine.reference.shapes.scenes.instructions import write_instruction
from qwen_image_engine.reference.shapes.training.latent_pool import References, encode
from qwen_image_engine.reference.shapes.training.load import read_trained
from qwen_image_engine.reference.shapes.training.save import write_checkpoint
from qwen_image_engine.reference.shapes.training.text_batch import tokenize_batch
from qwen_image_engine.reference.shapes.training.transformer import predict
from qwen_image_engine.runtime.images.pixels import encoder_pixels
from qwen_image_engine.runtime.model.sequence import ImageBlock
from tests.support.paths import SHAPES as COMMITTED


@pytest.mark.parametrize("kind", ["move", "combine"])
def test_a_padded_batch_with_references_gives_what_the_pipeline_gives(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    vae, model, tokenizer = read_trained(COMMITTED)
    for merger in model.reader.vision.deepstack_merger_list:
        torch.nn.init.normal_(merger.get_parameter("linear_fc2.weight"), std=0.05)
    model.to(torch.bfloat16).float()  # as it will be stored
    write_checkpoint(tmp_path, vae, model, tokenizer, seed=0)
    rng = np.random.default_rng(0)
    width, height = 128, 96
    block = ImageBlock(6, 8)
    edits = [random_edit(rng, kind) for _ in range(2)]
    pictures = [[reference.draw(width, height) for reference in edit.references] for edit in edits]
    prompts = [write_instruction(edits[0], rng, "en"), write_instruction(edits[1], rng, "zh") + " " * 20]
    text = tokenize_batch(tokenizer, prompts, "cpu", [block] * len(pictures[0]))
    assert len(set(text.lengths)) == 2
    references = References(
        torch.stack([encode(vae, np.stack(own), "cpu") for own in pictures]),
        np.stack([np.stack([encoder_pixels(picture) for picture in own]) for own in pictures]),
    )
    noisy = torch.randn(4, 48, 16)
    with torch.inference_mode():
        velocity = predict(model, text, references, noisy, torch.full((4,), 0.3), block).numpy()
    with reference_pipeline(tmp_path) as pipeline:
        for index, prompt in enumerate(prompts):
            own = [Image.fromarray(picture) for picture in pictures[index]]
            read = pipeline.read_references(own, round((width * height) ** 0.5))
            conditioning = pipeline.encode(prompt, read)
            denoise = pipeline.denoiser(
                conditioning, negative=None, guidance=1.0, width=width, height=height, num_images=2
            )
            wanted = denoise(noisy[2 * index : 2 * index + 2].numpy(), 0.3)
            # fp32 sums in another order, at velocities of about 1
            assert np.abs(velocity[2 * index : 2 * index + 2] - wanted).max() < 1e-3
