"""The table of dtypes: the name of each dtype in each library, and the bytes of an element.

Torch's names are numpy's if numpy has the dtype. Libraries with names of their own add a small dict beside their
import.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """A row of the table of dtypes.

    Attributes:
        name: torch's name, which contracts use.
        bytes: size of an element in bytes.
        numpy: little-endian numpy dtype of the stored bytes; unsigned integers if numpy has no such dtype.
        safetensors: name in the header of a .safetensors file.
        onnx: number in `TensorProto.DataType` (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
        precision: name in flags and manifests; empty if no network has unquantised weights in this dtype.
    """

    name: str
    bytes: int
    numpy: str
    safetensors: str
    onnx: int
    precision: str = ""


DTYPES: Mapping[str, DType] = {
    row.name: row
    for row in (
        DType("float64", 8, "<f8", "F64", 11),
        DType("float32", 4, "<f4", "F32", 1, "fp32"),
        DType("bfloat16", 2, "<u2", "BF16", 16, "bf16"),
        DType("float16", 2, "<f2", "F16", 10, "fp16"),
        DType("float8_e4m3fn", 1, "u1", "F8_E4M3", 17),
        DType("float8_e5m2", 1, "u1", "F8_E5M2", 19),
        DType("int64", 8, "<i8", "I64", 7),
        DType("int32", 4, "<i4", "I32", 6),
        DType("int16", 2, "<i2", "I16", 5),
        DType("int8", 1, "i1", "I8", 3),
        DType("uint64", 8, "<u8", "U64", 13),
        DType("uint32", 4, "<u4", "U32", 12),
        DType("uint16", 2, "<u2", "U16", 4),
        DType("uint8", 1, "u1", "U8", 2),
        DType("bool", 1, "?", "BOOL", 9),
    )
}
"""Rows by torch's name."""

STORED: Mapping[str, DType] = {row.safetensors: row for row in DTYPES.values()}
"""Rows by the name in a .safetensors file."""

STORED_FLOATS: Mapping[str, DType] = {row.safetensors: row for row in DTYPES.values() if row.precision}
"""Dtypes of unquantised weights, by the name in a .safetensors file."""

STORED_FACTORS: Mapping[str, DType] = {row.safetensors: row for row in DTYPES.values() if "float" in row.name}
"""Dtypes that the factors of an adapter may have, by the name in a .safetensors file. Each converts to float32 with at
most one rounding."""

PRECISIONS: Mapping[str, DType] = {row.precision: row for row in DTYPES.values() if row.precision}
"""Dtypes of unquantised weights, by the name in flags and manifests."""
