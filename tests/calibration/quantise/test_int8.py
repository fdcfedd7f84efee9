"""Codes and scales against numpy."""

import numpy as np
import torch

from qwen_image_engine.calibration.quantise.int8 import quantise_rows


def test_codes_and_scales_are_numpys() -> None:
    rows = torch.randn(40, 27, generator=torch.Generator().manual_seed(0))
    codes, scales = quantise_rows(rows)
    array = rows.numpy()
    expected = np.abs(array).max(axis=1) / np.float32(127)
    np.testing.assert_array_equal(scales.numpy(), expected)
    np.testing.assert_array_equal(codes.numpy(), np.rint(array / expected[:, None]))
    assert codes.dtype == torch.int8
    assert codes.abs().amax(dim=1).eq(127).all()
    # Half a step at most.
    assert ((codes * scales[:, None] - rows).abs() <= scales[:, None] * 0.5001).all()


def test_a_row_of_zeros_stays_zeros() -> None:
    codes, scales = quantise_rows(torch.tensor([[0.0, 0.0], [1e-30, -1e-30]]))
    assert codes.tolist() == [[0, 0], [127, -127]]
    assert torch.isfinite(scales).all()
    assert (scales > 0).all()
