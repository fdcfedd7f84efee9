"""Rotations: orthonormal, in blocks that fit, and nothing changed where both sides of a product are rotated."""

import pytest
import torch

from qwen_image_engine.calibration.quantise.hadamard import hadamard, rotate
from qwen_image_engine.calibration.rules.blocks import block_size


@pytest.mark.parametrize("size", [1, 2, 8, 64, 256])
def test_matrix_is_symmetric_and_orthonormal(size: int) -> None:
    matrix = hadamard(size)
    assert torch.equal(matrix, matrix.T)
    torch.testing.assert_close(matrix @ matrix, torch.eye(size), rtol=0, atol=1e-6)
    assert (matrix.abs() == matrix[0, 0]).all()


@pytest.mark.parametrize("size", [0, 3, 24, -4])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        hadamard(size)


@pytest.mark.parametrize(
    ("channels", "block"), [(4096, 256), (12288, 256), (192, 64), (576, 64), (384, 128), (120, 8), (27, 1), (60, 4)]
)
def test_block_divides_the_channels(channels: int, block: int) -> None:
    assert block_size(channels, 256) == block
    assert block_size(channels, 4) == min(block, 4)


@pytest.mark.parametrize("channels", [27, 120, 192, 512])
def test_folding_a_rotation_into_the_weights_is_exact(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, channels, generator=generator) for rows in (9, 31))
    block = block_size(channels, 256)
    # Rounding of fp32 alone: sums of up to 512 products.
    torch.testing.assert_close(rotate(x, block) @ rotate(weight, block).T, x @ weight.T, rtol=1e-5, atol=1e-4)


def test_an_outlier_is_spread_over_its_block() -> None:
    x = torch.zeros(1, 128)
    x[0, 70] = 8
    rotated = rotate(x, 64)
    assert torch.equal(rotated[0, :64], torch.zeros(64))
    torch.testing.assert_close(rotated[0, 64:].abs(), torch.ones(64))
