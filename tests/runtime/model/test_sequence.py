from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21Rope
from numpy.typing import NDArray
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from qwen_image_engine.runtime.model.sequence import (
    ImageBlock,
    Segment,
    TextRun,
    TokenSequence,
    encoder_positions,
    image_positions,
    text_positions,
)


def diffusers_positions(prefix: list[Segment], target: ImageBlock) -> NDArray[np.int64]:
    """Read the positions QwenImage21Rope looks up: its tables are replaced by the positions themselves."""
    rope = QwenImage21Rope(theta=10000, axes_dim=[2, 2, 2])
    index = torch.cat([torch.arange(8192), -torch.arange(1024, 0, -1)])[:, None]
    rope.freqs = [index, index, index]
    mask: list[bool] = []
    shapes = []
    for segment in [*prefix, target]:
        if isinstance(segment, TextRun):
            mask += [False] * segment.length
        else:
            mask += [True] * (segment.height * segment.width)
            shapes.append((1, segment.height, segment.width))
    return rope(shapes, torch.tensor(mask), torch.device("cpu")).numpy()


PREFIXES: dict[str, list[Segment]] = {
    "one token": [TextRun(1)],
    "text": [TextRun(17)],
    "long text": [TextRun(1124)],
    "no text": [],
    "one image": [TextRun(9), ImageBlock(4, 6), TextRun(12)],
    "image first": [ImageBlock(6, 2), TextRun(3)],
    "image last": [TextRun(5), ImageBlock(2, 8)],
    "adjacent images": [TextRun(3), ImageBlock(4, 4), ImageBlock(4, 4), ImageBlock(2, 10), TextRun(4)],
    "odd images": [TextRun(2), ImageBlock(3, 7), TextRun(1), ImageBlock(5, 1), TextRun(2)],
    "ten images": [segment for n in range(1, 11) for segment in (TextRun(n), ImageBlock(2 * n, 22 - 2 * n))],
}
TARGETS = [(2, 2), (4, 24), (24, 4), (1, 1), (3, 5), (1, 9), (96, 172), (2, 1024)]


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_positions_equal_diffusers(prefix: list[Segment], target: tuple[int, int]) -> None:
    expected = diffusers_positions(prefix, ImageBlock(*target))
    layout = TokenSequence.of(prefix, ImageBlock(*target))
    assert layout.prefix.dtype == layout.target.dtype == np.int32
    assert layout.target.shape == (target[0] * target[1], 3)
    np.testing.assert_array_equal(np.concatenate([layout.prefix, layout.target]), expected)


def test_text_to_image_is_one_run_and_the_target() -> None:
    layout = TokenSequence.text_to_image(11, 4, 6)
    np.testing.assert_array_equal(layout.prefix, text_positions(11))
    np.testing.assert_array_equal(layout.target, image_positions(4, 6, start=11))


def transformers_positions(segments: list[Segment]) -> NDArray[np.int64]:
    """Qwen3VLModel.get_rope_index, which reads nothing of the model but a merge size."""
    kinds: list[int] = []
    grids = []
    for segment in segments:
        if isinstance(segment, TextRun):
            kinds += [0] * segment.length
        else:
            kinds += [1] * (segment.height // 2 * (segment.width // 2))
            grids.append([1, segment.height, segment.width])
    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2)),
        get_vision_position_ids=lambda *given, **options: Qwen3VLModel.get_vision_position_ids(None, *given, **options),
    )
    ids = torch.zeros(1, len(kinds), dtype=torch.long)
    positions, _ = Qwen3VLModel.get_rope_index(model, ids, torch.tensor([kinds]), torch.tensor(grids))
    return positions[:, 0].T.numpy()


# With text between images, as in the template; transformers takes adjacent ones for one.
ENCODED: dict[str, list[Segment]] = {
    "text": [TextRun(37)],
    "square": [TextRun(19), ImageBlock(64, 64), TextRun(12)],
    "wide": [TextRun(19), ImageBlock(2, 128), TextRun(1)],
    "tall": [TextRun(1), ImageBlock(90, 46), TextRun(12)],
    "image last": [TextRun(5), ImageBlock(2, 8)],
    "image first": [ImageBlock(6, 2), TextRun(3)],
    "ten": [segment for n in range(1, 11) for segment in (TextRun(n), ImageBlock(2 * n, 22 - 2 * n))] + [TextRun(7)],
}


@pytest.mark.parametrize("segments", ENCODED.values(), ids=ENCODED)
def test_encoder_positions_equal_transformers(segments: list[Segment]) -> None:
    positions = encoder_positions(segments)
    assert positions.dtype == np.int32
    np.testing.assert_array_equal(positions, transformers_positions(segments))


def test_adjacent_images_follow_one_another_in_the_encoder() -> None:
    adjacent = encoder_positions([TextRun(3), ImageBlock(4, 2), ImageBlock(2, 2), TextRun(1)])
    assert adjacent[3:].tolist() == [[3, 3, 3], [3, 4, 3], [5, 5, 5], [6, 6, 6]]
