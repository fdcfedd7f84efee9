"""Weights that are NaN or infinite: found in every dtype, and named with their place."""

from pathlib import Path

import pytest
import torch

from qwen_image_engine.reference.storage.finite import NotFiniteError, check_converted, check_finite
from qwen_image_engine.reference.storage.tensor_file import TensorInfo

SOURCE = TensorInfo("proj.weight", "F32", (40, 30), 0, 4800, Path("model.safetensors"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_the_first_place_is_named(dtype: torch.dtype, value: str) -> None:
    values = torch.full((300,), torch.finfo(dtype).max, dtype=dtype)
    values[::2] = -values[::2]
    check_finite(SOURCE, values)
    values[[31, 77]] = float(value)
    with pytest.raises(NotFiniteError, match=rf"'proj\.weight' has .* not finite, the first {value} at \[11, 1\]; "):
        check_finite(SOURCE, values.reshape(10, 30), first=300)
    check_finite(SOURCE, values[:0])


def test_values_beyond_the_dtype() -> None:
    values = torch.tensor([1.0, 65504.0, 65519.0])
    check_converted(SOURCE, values.half())
    values[1] = -65521.0
    with pytest.raises(
        NotFiniteError, match=r"at \[0, 1\] that float16 cannot hold \(its largest is 65504\); export in"
    ):
        check_converted(SOURCE, values.half())
