import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21Rope
from numpy.typing import NDArray

from qwen_image_engine.runtime.layout import ImageBlock, Layout, Segment, TextRun, image_positions, text_positions


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
    layout = Layout.of(prefix, ImageBlock(*target))
    assert layout.prefix.dtype == layout.target.dtype == np.int32
    assert layout.target.shape == (target[0] * target[1], 3)
    np.testing.assert_array_equal(np.concatenate([layout.prefix, layout.target]), expected)


def test_text_to_image_is_one_run_and_the_target() -> None:
    layout = Layout.text_to_image(11, 4, 6)
    np.testing.assert_array_equal(layout.prefix, text_positions(11))
    np.testing.assert_array_equal(layout.target, image_positions(4, 6, start=11))
