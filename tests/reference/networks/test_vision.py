"""The vision tower, and the text encoder on images, against transformers in fp32 on random weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import load_network
from qwen_image_engine.reference.networks.text_encoder import TextEncoder
from qwen_image_engine.reference.networks.vision import Vision
from qwen_image_engine.runtime.model.rope import encoder_rotary_tables
from qwen_image_engine.runtime.model.sequence import ImageBlock, Segment, TextRun, encoder_positions, text_positions
from qwen_image_engine.runtime.model.vision import interpolation, vision_rotary_tables
from tests.support.oracles import load_text_encoder

# fp32 in another order; a wrong term is 1e-3 and more.
TOLERANCE = 1e-5

# Patches: the smallest, square, wide, tall, and larger a side than every table of positions.
SIZES = ((2, 2), (8, 8), (4, 22), (18, 6), (14, 12))

# Text and images in patches, as in the sequence of an edit: text before, between and behind.
SEQUENCE: tuple[Segment, ...] = (TextRun(7), ImageBlock(4, 10), TextRun(4), ImageBlock(12, 6), TextRun(9))

Within = Callable[[str, float, float], None]


@pytest.fixture(scope="module", params=["narrow", "odd", "deep"])
def folder(request: pytest.FixtureRequest, random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(request.param)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    return load_text_encoder(folder).model


@pytest.fixture(scope="module")
def vision(checkpoint: Checkpoint) -> Vision:
    network = load_network(checkpoint, "vision")
    assert isinstance(network, Vision)
    return network


@pytest.fixture(scope="module")
def text_encoder(checkpoint: Checkpoint) -> TextEncoder:
    network = load_network(checkpoint, "text_encoder")
    assert isinstance(network, TextEncoder)
    return network


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def random_patches(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * rows + columns)
    return torch.rand(rows * columns, 1536, generator=generator) * 2 - 1


def features(network: Vision, rows: int, columns: int, patches: Tensor) -> list[Tensor]:
    """Features of images (B, N, 1536)."""
    config = network.config
    taps = interpolation(rows, columns, config.position_side)
    tables = vision_rotary_tables(rows, columns, config.head_dim, config.rope_theta)
    found: list[Tensor] = network(patches, *map(torch.from_numpy, (*taps, *tables)))
    return found


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_tower_and_deepstack(oracle: Any, vision: Vision, size: tuple[int, int], within: Within) -> None:
    patches = random_patches(*size)
    expected = oracle.visual(patches, grid_thw=torch.tensor([[1, *size]]))
    found = features(vision, *size, patches[None])
    wanted = (expected.pooler_output, *expected.deepstack_features)
    assert len(found) == len(wanted) == 1 + len(vision.config.deepstack)
    for one, other in zip(found, wanted, strict=True):
        within("vision tower against transformers, relative L2", error(one[0], other), TOLERANCE)


@torch.inference_mode()
def test_images_of_one_batch_do_not_see_each_other(vision: Vision) -> None:
    patches = torch.stack([random_patches(4, 6), -random_patches(4, 6).flip(0)])
    together = features(vision, 4, 6, patches)
    for index in range(2):
        alone = features(vision, 4, 6, patches[index : index + 1])
        for one, other in zip(together, alone, strict=True):
            assert error(one[index : index + 1], other) < TOLERANCE


class Encoded:
    """A sequence with two images through transformers, and what the text encoder here takes for it."""

    def __init__(self, checkpoint: Checkpoint, oracle: Any, vision: Vision) -> None:
        generator = torch.Generator().manual_seed(3)
        config, ids = checkpoint.text_encoder, []
        first_special = int(oracle.config.vision_start_token_id)
        images = [segment for segment in SEQUENCE if isinstance(segment, ImageBlock)]
        for segment in SEQUENCE:
            if isinstance(segment, TextRun):
                ids += torch.randint(first_special - 20, (segment.length,), generator=generator).tolist()
                if segment is not SEQUENCE[-1]:
                    ids[-1] = first_special
            else:
                ids += [int(oracle.config.image_token_id)] * (segment.height * segment.width // 4)
        self.ids = torch.tensor([ids])
        self.is_image = self.ids[0] == oracle.config.image_token_id
        pixels = [random_patches(image.height, image.width) for image in images]
        seen: list[Tensor] = []
        # transformers 5 returns the state after the norm, and diffusers takes the norm's input too.
        hook = oracle.language_model.norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        oracle(
            input_ids=self.ids,
            pixel_values=torch.cat(pixels),
            image_grid_thw=torch.tensor([[1, image.height, image.width] for image in images]),
            mm_token_type_ids=self.is_image[None].int(),
        )
        hook.remove()
        (self.expected,) = seen

        found = [
            features(vision, image.height, image.width, patches[None])
            for image, patches in zip(images, pixels, strict=True)
        ]
        table = checkpoint.components["text_encoder"].read(checkpoint.token_embeddings().name)
        self.embeddings = torch.nn.functional.embedding(self.ids, table)
        self.embeddings[:, self.is_image] = torch.cat([item[0] for item in found], dim=1)
        self.deepstack = [torch.zeros_like(self.embeddings) for _ in range(config.deepstack)]
        for index, added in enumerate(self.deepstack):
            added[:, self.is_image] = torch.cat([item[1 + index] for item in found], dim=1)
        positions = encoder_positions(SEQUENCE)
        self.tables = [
            torch.from_numpy(table)
            for table in encoder_rotary_tables(positions, config.head_dim, config.rope_theta, config.mrope_section)
        ]

    def error_at_last_text(self, network: TextEncoder, tables: Sequence[Tensor], deepstack: Sequence[Tensor]) -> float:
        """Error of the states of the text behind the images, the only ones that the transformer sees."""
        behind = SEQUENCE[-1]
        assert isinstance(behind, TextRun)
        states = network(self.embeddings, *tables, deepstack)
        return error(states[:, -behind.length :], self.expected[:, -behind.length :])


@pytest.fixture(scope="module")
def encoded(checkpoint: Checkpoint, oracle: Any, vision: Vision) -> Encoded:
    with torch.inference_mode():
        return Encoded(checkpoint, oracle, vision)


@torch.inference_mode()
def test_text_encoder_on_images(encoded: Encoded, text_encoder: TextEncoder, within: Within) -> None:
    states = text_encoder(encoded.embeddings, *encoded.tables, encoded.deepstack)
    figure = "text encoder with images against transformers, relative L2"
    within(figure, error(states, encoded.expected), TOLERANCE)


@torch.inference_mode()
def test_leaving_something_out_would_be_seen(encoded: Encoded, text_encoder: TextEncoder) -> None:
    """DeepStack, each of its features, and the axes of positions: all reach the text behind the images."""
    config, zeros = text_encoder.config, torch.zeros_like(encoded.embeddings)
    assert encoded.error_at_last_text(text_encoder, encoded.tables, [zeros] * config.deepstack) > 100 * TOLERANCE
    for left_out in range(config.deepstack):
        deepstack = [zeros if index == left_out else item for index, item in enumerate(encoded.deepstack)]
        found = encoded.error_at_last_text(text_encoder, encoded.tables, deepstack)
        # After the last layer no attention follows that would bring it to the text.
        reaches = left_out < config.num_hidden_layers - 1
        assert (found > 100 * TOLERANCE) == reaches
    in_a_row = text_positions(encoded.ids.shape[1])
    one_axis = encoder_rotary_tables(in_a_row, config.head_dim, config.rope_theta, config.mrope_section)
    flat = [torch.from_numpy(np.ascontiguousarray(table)) for table in one_axis]
    assert encoded.error_at_last_text(text_encoder, flat, encoded.deepstack) > 100 * TOLERANCE
