"""The table of dtypes, against the libraries whose names it has."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from qwen_image_engine.engines.core.dtypes import DTYPES, PRECISIONS, STORED, STORED_FLOATS, DType
from qwen_image_engine.reference.storage.tensor_file import read_header


@pytest.mark.parametrize("row", DTYPES.values(), ids=DTYPES)
def test_a_row_is_what_libraries_say(row: DType) -> None:
    dtype = getattr(torch, row.name)
    assert isinstance(dtype, torch.dtype)
    assert row.bytes == dtype.itemsize == np.dtype(row.numpy).itemsize
    assert onnx.helper.tensor_dtype_to_np_dtype(row.onnx).name == row.name
    assert STORED[row.safetensors] is row


@pytest.mark.parametrize("row", DTYPES.values(), ids=DTYPES)
def test_safetensors_writes_the_name_of_the_table(row: DType, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_file({"one": torch.zeros(2, dtype=getattr(torch, row.name))}, path)
    found = read_header(path)["one"]
    assert (found.dtype, found.nbytes) == (row.safetensors, 2 * row.bytes)


def test_unquantised_weights() -> None:
    assert list(PRECISIONS) == ["fp32", "bf16", "fp16"]
    assert {*STORED_FLOATS} == {"F32", "BF16", "F16"}
