import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21Rope
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from qwen_image_engine.runtime.layout import ImageBlock, Layout, Segment, TextRun
from qwen_image_engine.runtime.rope import rotary_tables, text_rotary_tables

# Angles round alike, so what is left is torch's float32 cosine (1 ulp, 6e-8) and, for a few high channels, one ulp of
# torch's float32 power, whose frequency is below 1e-2: 8191 * 1e-2 * 6e-8 = 5e-6.
TOLERANCE = 5e-6

LAYOUTS: dict[str, tuple[list[Segment], ImageBlock]] = {
    "text only": ([TextRun(23)], ImageBlock(16, 16)),
    "1:6": ([TextRun(1)], ImageBlock(6, 36)),
    "images": ([TextRun(9), ImageBlock(4, 6), ImageBlock(6, 4), TextRun(12)], ImageBlock(8, 8)),
    "odd": ([TextRun(2), ImageBlock(3, 7)], ImageBlock(5, 9)),
    "2752x1536": ([TextRun(1124)], ImageBlock(96, 172)),
    "far": ([TextRun(8190)], ImageBlock(2, 600)),
}


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

    layout = Layout.of(prefix, target)
    cos, sin = rotary_tables(np.concatenate([layout.prefix, layout.target]), axes_dims)

    assert cos.dtype == sin.dtype == np.float32
    assert cos.shape == sin.shape == (len(mask), sum(axes_dims) // 2)
    np.testing.assert_allclose(cos, expected.real, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(sin, expected.imag, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("head_dim", "theta", "section"), [(128, 5e6, [24, 20, 20]), (64, 5e6, [12, 10, 10]), (32, 1e4, [6, 5, 5])]
)
@pytest.mark.parametrize("length", [1, 37, 1124])
def test_text_tables_equal_transformers(length: int, head_dim: int, theta: float, section: list[int]) -> None:
    config = Qwen3VLTextConfig(
        head_dim=head_dim,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": theta,
            "mrope_section": section,
            "mrope_interleaved": True,
        },
    )
    rope = Qwen3VLTextRotaryEmbedding(config)
    expected_cos, expected_sin = rope(torch.zeros(1), torch.arange(length).expand(3, 1, length))

    cos, sin = text_rotary_tables(length, head_dim, theta)

    assert cos.dtype == sin.dtype == np.float32
    # transformers repeats the half table for the half-split rotation
    np.testing.assert_allclose(np.concatenate([cos, cos], axis=1), expected_cos[0].numpy(), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(np.concatenate([sin, sin], axis=1), expected_sin[0].numpy(), rtol=0, atol=TOLERANCE)
