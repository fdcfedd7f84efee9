import numpy as np
import torch
from diffusers.pipelines.qwenimage21.pipeline_qwenimage21 import QwenImage21Pipeline

from qwen_image_engine.runtime.model.latents import pack_latents, unpack_latents


def test_pack_and_unpack_equal_diffusers() -> None:
    latents = np.random.default_rng(0).standard_normal((2, 1, 5, 4, 6), dtype=np.float32)
    expected = QwenImage21Pipeline._pack_latents(torch.from_numpy(latents), 2, 5, 4, 6)

    tokens = pack_latents(latents)
    np.testing.assert_array_equal(tokens, expected.numpy())
    assert tokens.flags.c_contiguous

    grid = unpack_latents(tokens, 4, 6)
    unpacked = QwenImage21Pipeline._unpack_latents(expected, 4 * 16, 6 * 16, 16)  # (2, 5, 1, 4, 6)
    np.testing.assert_array_equal(grid, unpacked[:, :, 0].numpy())
    assert grid.flags.c_contiguous
