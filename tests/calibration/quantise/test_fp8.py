"""FP8 E4M3 codes against the format's own values, which ml_dtypes spells out."""

import ml_dtypes
import numpy as np
import torch

from qwen_image_engine.calibration.quantise import fp8


def test_values_go_to_the_nearest_code_and_saturate() -> None:
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    finite = np.unique(codes[np.isfinite(codes)])
    assert finite.max() == fp8.LARGEST
    values = torch.cat([torch.linspace(-600, 600, 4001), torch.randn(1000) * 0.01])
    found = fp8.quantise(values * 0.25, 0.25).float().numpy()
    nearest = finite[np.abs(values.double().numpy()[:, None] - finite).argmin(axis=1)]
    middle = np.abs(values.double().numpy() - nearest)
    np.testing.assert_allclose(np.abs(values.numpy() - found), middle, atol=1e-6)
    assert np.isfinite(found).all()
