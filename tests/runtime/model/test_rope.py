import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21Rope
from numpy.typing import NDArray
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from qwen_image_engine.runtime.model.rope import encoder_rotary_tables, rotary_tables
from qwen_image_engine.runtime.model.sequence import (
    ImageBlock,
    Segment,
    TextRun,
    TokenSequence,
    encoder_positions,
    text_positions,
)


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32], angles: NDArray[np.float64]) -> None:
    """Equal but for torch's float32 cosine (1 ulp, 6e-8) and power: the last bit of a frequency and of its angle.

    Which frequencies torch rounds otherwise depends on the processor: with AVX-512 few, with AVX2 alone more.
    """
    assert found.shape == expected.shape == angles.shape
    assert (np.abs(found - expected) <= 1e-7 + 2.0**-22 * np.abs(angles)).all()


LAYOUTS: dict[str, tuple[list[Segment], ImageBlock]] = {
    "text only": ([TextRun(23)], ImageBlock(16, 16)),
    "1:6": ([TextRun(1)], ImageBlock(6, 36)),
    "images": ([TextRun(9), ImageBlock(4, 6), ImageBlock(6, 4), TextRun(12)], ImageBlock(8, 8)),
    "odd": ([TextRun(2), ImageBlock(3, 7)], ImageBlock(5, 9)),
    "2752x1536": ([TextRun(1124)], ImageBlock(96, 172)),
    "far": ([TextRun(8190)], ImageBlock(2, 600)),
}


def frequencies(dim: int, theta: float) -> NDArray[np.float64]:
    return theta ** (-np.arange(0, dim, 2) / dim)


@pytest.mark.parametrize("axes_dims", [(16, 56, 56), (8, 28, 28), (4, 6, 6), (2, 2, 4)], ids=str)
@pytest.mark.parametrize(("prefix", "target"), LAYOUTS.values(), ids=LAYOUTS)
def test_tables_equal_diffusers(prefix: list[Segment], target: ImageBlock, axes_dims: tuple[int, ...]) -> None:
    mask: list[bool] = []
    shapes = []
    for segment in [*prefix, target]:
        if isinstance(segment, TextRun):
            mask += [False] * segment.length
        else:
            mask += [True] * (segment.height * segment.width)
            shapes.append((1, segment.height, segment.width))
    expected = QwenImage21Rope(10000, list(axes_dims))(shapes, torch.tensor(mask), torch.device("cpu")).numpy()

    layout = TokenSequence.of(prefix, target)
    cos, sin = rotary_tables(np.concatenate([layout.prefix, layout.target]), axes_dims)

    assert cos.dtype == sin.dtype == np.float32
    assert cos.shape == sin.shape == (len(mask), sum(axes_dims) // 2)
    places = np.concatenate([layout.prefix, layout.target])
    angles = [places[:, [axis]] * frequencies(dim, 1e4) for axis, dim in enumerate(axes_dims)]
    assert_close(cos, expected.real, np.concatenate(angles, axis=1))
    assert_close(sin, expected.imag, np.concatenate(angles, axis=1))


ENCODERS = [(128, 5e6, [24, 20, 20]), (64, 5e6, [12, 10, 10]), (32, 1e4, [6, 5, 5]), (16, 5e6, [4, 2, 2])]


def transformers_tables(
    positions: NDArray[np.int32], head_dim: int, theta: float, section: list[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    config = Qwen3VLTextConfig(
        head_dim=head_dim,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": theta,
            "mrope_section": section,
            "mrope_interleaved": True,
        },
    )
    places = torch.from_numpy(positions.T[:, None].astype(np.int64))
    cos, sin = Qwen3VLTextRotaryEmbedding(config)(torch.zeros(1), places)
    return cos[0].numpy(), sin[0].numpy()


@pytest.mark.parametrize(("head_dim", "theta", "section"), ENCODERS)
@pytest.mark.parametrize("length", [1, 37, 1124])
def test_text_tables_equal_transformers(length: int, head_dim: int, theta: float, section: list[int]) -> None:
    expected_cos, expected_sin = transformers_tables(text_positions(length), head_dim, theta, section)

    cos, sin = encoder_rotary_tables(text_positions(length), head_dim, theta, section)

    assert cos.dtype == sin.dtype == np.float32
    # transformers repeats the half table for the half-split rotation
    angles = np.tile(np.arange(length)[:, None] * frequencies(head_dim, theta), 2)
    assert_close(np.concatenate([cos, cos], axis=1), expected_cos, angles)
    assert_close(np.concatenate([sin, sin], axis=1), expected_sin, angles)


@pytest.mark.parametrize(("head_dim", "theta", "section"), ENCODERS)
@pytest.mark.parametrize(
    "segments",
    [
        [TextRun(21), ImageBlock(64, 64), TextRun(40)],
        [TextRun(21), ImageBlock(30, 140), TextRun(3), ImageBlock(140, 30), TextRun(40)],
        [TextRun(900)] + [segment for _ in range(9) for segment in (ImageBlock(4, 64), TextRun(3))],
    ],
    ids=["square", "wide and tall", "nine"],
)
def test_encoder_tables_equal_transformers(
    segments: list[Segment], head_dim: int, theta: float, section: list[int]
) -> None:
    positions = encoder_positions(segments)
    expected_cos, expected_sin = transformers_tables(positions, head_dim, theta, section)

    cos, sin = encoder_rotary_tables(positions, head_dim, theta, section)

    assert cos.dtype == sin.dtype == np.float32
    angles = positions.max(axis=1, keepdims=True) * frequencies(head_dim, theta)  # no axis' angle is larger
    for found, expected in ((cos, expected_cos), (sin, expected_sin)):
        np.testing.assert_array_equal(expected[:, : head_dim // 2], expected[:, head_dim // 2 :])
        assert_close(found, expected[:, : head_dim // 2], angles)
