"""Time features: the sinusoid of a step's noise level."""

import math

import numpy as np
from numpy.typing import NDArray

TIME_FEATURES = 256


def time_features(sigma: float) -> NDArray[np.float32]:
    """Return the sinusoid of 1000*sigma that the transformer's time embedding reads.

    Frequencies are exp(-ln(10000) * i/128). Every operation rounds to float32 like diffusers'
    `QwenImage21TemporalTimesteps`, because the last bit of the angle changes the features by 6e-5.

    Returns:
        (256,) float32, 128 cosines then 128 sines.
    """
    half = TIME_FEATURES // 2
    exponents = np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = (np.float32(sigma) * np.float32(1000) * frequencies).astype(np.float64)
    return np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)
