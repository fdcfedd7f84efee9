"""Conversion to and from bfloat16, the upper half of a float32, held as uint16: numpy has no dtype for it."""

import numpy as np
from numpy.typing import NDArray


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even. A NaN stays a NaN."""
    bits = np.asarray(values, order="C").view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    # Rounding carries a NaN whose upper bits are all set over into a zero.
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the same values in float32. The conversion is exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
