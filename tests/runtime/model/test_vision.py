import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers.image_processing_backends import TorchvisionBackend
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionRotaryEmbedding
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from qwen_image_engine.runtime.model.vision import interpolation, vision_patches, vision_rotary_tables
from tests.support.random_configurations import CONFIGURATIONS
from tests.support.random_processor import write_processor

GRIDS = [(16, 16), (2, 128), (12, 30), (30, 12), (52, 6)]  # patches; each at least the processor's 65,536 pixels
HALVES = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def picture(rows: int, columns: int) -> NDArray[np.uint8]:
    return np.random.default_rng(rows).integers(0, 256, (rows * 16, columns * 16, 3), dtype=np.uint8)


def settings(folder: Path, mean: list[float], std: list[float]) -> dict[str, Any]:
    write_processor(folder, CONFIGURATIONS["narrow"])
    values = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))["image_processor"]
    return {**values, "image_mean": mean, "image_std": std}


@pytest.mark.parametrize(("mean", "std"), [HALVES, CLIP], ids=["halves", "CLIP"])
@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_patches_equal_transformers(
    rows: int, columns: int, mean: list[float], std: list[float], tmp_path: Path
) -> None:
    pytest.importorskip("torchvision")
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    rgb = picture(rows, columns)
    oracle = Qwen2VLImageProcessor(**settings(tmp_path, mean, std))
    expected = oracle(images=[Image.fromarray(rgb)], return_tensors="pt")
    patches = vision_patches(rgb, mean, std)
    assert expected["image_grid_thw"].tolist() == [[1, rows, columns]]
    assert patches.dtype == np.float32
    assert patches.shape == (rows * columns, 1536)
    np.testing.assert_array_equal(patches, expected["pixel_values"].numpy())


@pytest.mark.parametrize(("mean", "std"), [HALVES, CLIP], ids=["halves", "CLIP"])
@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_patches_without_torchvision(
    rows: int, columns: int, mean: list[float], std: list[float], tmp_path: Path
) -> None:
    rgb = picture(rows, columns)
    # The processor that needs no torchvision rescales and normalises in two steps; given the fused figures, in one.
    fused = TorchvisionBackend._fuse_mean_std_and_rescale_factor(None, True, (*mean,), (*std,), True, 1 / 255)
    given = {"image_mean": fused[0].tolist(), "image_std": fused[1].tolist(), "do_rescale": False}
    oracle = Qwen2VLImageProcessorPil(**{**settings(tmp_path, mean, std), **given})
    expected = oracle(images=[Image.fromarray(rgb)], return_tensors="np")
    assert expected["image_grid_thw"].tolist() == [[1, rows, columns]]
    np.testing.assert_array_equal(vision_patches(rgb, mean, std), expected["pixel_values"])


@pytest.mark.parametrize("side", [48, 8, 6])
@pytest.mark.parametrize(("rows", "columns"), [*GRIDS, (2, 2), (48, 96), (172, 96)])
def test_interpolation_equals_transformers(rows: int, columns: int, side: int) -> None:
    expected = get_vision_interpolation_indices_and_weights(
        torch.tensor([[1, rows, columns]]), side, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    indices, weights = interpolation(rows, columns, side)
    assert indices.dtype == np.int64
    assert weights.dtype == np.float32
    assert indices.shape == weights.shape == (rows * columns, 4)
    np.testing.assert_array_equal(indices, expected[0].numpy())
    np.testing.assert_array_equal(weights, expected[1].numpy())


@pytest.mark.parametrize(("head_dim", "theta"), [(72, 1e4), (16, 1e4), (64, 5e5)])
@pytest.mark.parametrize(("rows", "columns"), [*GRIDS, (2, 2), (2, 906)])
def test_rotary_tables_equal_transformers(rows: int, columns: int, head_dim: int, theta: float) -> None:
    config = Qwen3VLVisionConfig(
        hidden_size=4 * head_dim, num_heads=4, rope_parameters={"rope_type": "axial", "rope_theta": theta}
    )
    places = get_vision_position_ids(torch.tensor([[1, rows, columns]]), 2)
    expected = Qwen3VLVisionRotaryEmbedding(config)(torch.zeros(1), places)

    tables = vision_rotary_tables(rows, columns, head_dim, theta)

    half = places.numpy()[:, :, None] * theta ** (-np.arange(0, head_dim // 2, 2) / (head_dim // 2))
    angles = half.reshape(rows * columns, head_dim // 2)
    for found, oracle in zip(tables, expected, strict=True):
        assert found.dtype == np.float32
        # transformers repeats the half table for the half-split rotation; torch's own cosine and power, as in test_rope
        np.testing.assert_array_equal(oracle[:, : head_dim // 2], oracle[:, head_dim // 2 :])
        assert (np.abs(found - oracle[:, : head_dim // 2].numpy()) <= 1e-7 + 2.0**-22 * np.abs(angles)).all()


def test_patches_meet_their_positions() -> None:
    """Patch, taps and angle of one place stand in one row: a picture whose colours name the place of each patch."""
    rows, columns = 6, 10
    rgb = np.zeros((rows, 16, columns, 16, 3), np.uint8)
    rgb[..., 0] = np.arange(rows)[:, None, None, None]
    rgb[..., 1] = np.arange(columns)[:, None]
    patches = vision_patches(rgb.reshape(rows * 16, columns * 16, 3), [0, 0, 0], [1 / 255] * 3)
    places = patches.reshape(-1, 3, 2, 16, 16)
    row, column = places[:, 0, 0, 0, 0], places[:, 1, 1, 15, 15]
    indices, weights = interpolation(rows, columns, 128)
    np.testing.assert_allclose((indices // 128 * weights).sum(1) * 5 / 127, row, atol=1e-5)
    np.testing.assert_allclose((indices % 128 * weights).sum(1) * 9 / 127, column, atol=1e-5)
    cos, sin = vision_rotary_tables(rows, columns, 8)
    np.testing.assert_allclose(np.arctan2(sin[:, 1], cos[:, 1]) * 100, row, atol=1e-4)
    np.testing.assert_allclose(np.arctan2(sin[:, 3], cos[:, 3]) * 100, column, atol=1e-4)
