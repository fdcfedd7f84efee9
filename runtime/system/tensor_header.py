"""The header of a safetensors file: the places of its tensors, and its metadata.

Format (huggingface/safetensors, README): 8 bytes little-endian header length, a JSON header of name -> {dtype, shape,
data_offsets}, then the tensors without gaps; offsets count from the end of the header.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any

from qwen_image_engine.engines.core.dtypes import STORED
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import open_regular
from qwen_image_engine.engines.core.graph.weight_file import StoredTensor
from qwen_image_engine.runtime.system.json_schema import (
    NAME,
    TEXT,
    SchemaError,
    described,
    is_list_of,
    is_whole,
    leaf,
    named,
    parse,
    record,
)

MAX_HEADER_BYTES = 25_000_000
"""Largest header that is read: `MAX_TENSORS` with long names. The library takes four times as much, whose JSON may need
2 GB."""

MAX_TENSORS = 100_000
"""Largest number of tensors in a file. A released network has fewer than 1,000; the JSON of a million takes 1 GB."""

_METADATA = "__metadata__"
_MOST_AXES = 16

_ENTRY = record(
    {
        "dtype": TEXT,
        "shape": leaf(
            f"a list of at most {_MOST_AXES} sizes",
            lambda value: value == [] or (is_list_of(value, is_whole) and len(value) <= _MOST_AXES),
        ),
        "data_offsets": leaf(
            "where the tensor begins and ends",
            lambda value: is_list_of(value, is_whole, 2) and value[0] <= value[1],
        ),
    }
)
_FOREIGN = {
    b"version ": "is a git-lfs pointer, expected the weights; fetch them with `git lfs pull`",
    b"GGUF": "is a GGUF file, whose weights are quantised; expected the .safetensors file in BF16, F16 or F32",
    b"PK\x03\x04": "is a zip archive, as torch.save writes it; expected a .safetensors file",
    b"\x80\x02": "is a pickle, as torch.save wrote it; expected a .safetensors file",
}
"""Errors of files of other formats, by the first bytes."""


def read_tensor_header(path: Path) -> list[StoredTensor]:
    """Return the place of every tensor in the safetensors file at `path`, in the order of the bytes.

    Raises:
        QwenImageError: the file cannot be read or has another size than its header says, or its header is malformed.
    """
    header, first_byte, size = _read_json(path)
    tensors = [_entry(path, name, entry, first_byte) for name, entry in header.items() if name != _METADATA]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = first_byte
    for tensor in tensors:
        if tensor.offset != end:
            raise QwenImageError(
                f"{path}: bad header: tensor {tensor.name!r} starts at {tensor.offset}, expected {end}"
            )
        end += tensor.nbytes
    if size < end:
        raise QwenImageError(f"{path}: truncated: it holds {size} bytes, its header lists {end}; download it again")
    if size > end:
        raise QwenImageError(f"{path}: it holds {size} bytes, its header lists {end}; download it again")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of the safetensors file at `path`, empty if the file has none.

    Raises:
        QwenImageError: the file cannot be read or is truncated, or its header or metadata is malformed.
    """
    metadata: dict[str, str] = _read_json(path)[0].get(_METADATA, {})
    try:
        named(TEXT)(metadata, _METADATA)
    except SchemaError as error:
        raise QwenImageError(f"{path}: bad header: {error}") from error
    return metadata


def _read_json(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header, the offset of the first tensor, and the size of the file."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            text = file.read(length) if 2 <= length <= min(MAX_HEADER_BYTES, size - 8) else None
    except OSError as error:
        raise QwenImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    for first_bytes, fault in _FOREIGN.items():
        if start.startswith(first_bytes) and (text is None or not text.startswith(b"{")):
            raise QwenImageError(f"{path}: {fault}")
    if text is None:
        if 2 <= length <= MAX_HEADER_BYTES:
            raise QwenImageError(
                f"{path}: truncated: it holds {size} bytes, its header alone takes {length + 8}; download it again"
            )
        if MAX_HEADER_BYTES < length <= size - 8:
            raise QwenImageError(f"{path}: its header takes {length} bytes, expected at most {MAX_HEADER_BYTES}")
        raise QwenImageError(f"{path}: not a safetensors file: no header in its {size} bytes")
    count = text.count(b'"data_offsets"')
    if count > MAX_TENSORS:
        raise QwenImageError(f"{path}: its header lists {count} tensors, expected at most {MAX_TENSORS}")
    try:
        header = parse(text)
    except SchemaError as error:
        raise QwenImageError(f"{path}: not a safetensors file: its header is {error}") from error
    if not isinstance(header, dict):
        raise QwenImageError(f"{path}: not a safetensors file: its header is not a JSON object")
    return header, 8 + length, size


def _entry(path: Path, name: str, entry: Any, first_byte: int) -> StoredTensor:
    try:
        NAME(name, "the name of a tensor")
        _ENTRY(entry, f"tensor {name!r}")
    except SchemaError as error:
        raise QwenImageError(f"{path}: bad header: {error}") from error
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in STORED:
        raise QwenImageError(f"{path}: tensor {name!r} has dtype {described(dtype)}, expected BF16, F16 or F32")
    expected = math.prod(shape) * STORED[dtype].bytes
    if end - begin != expected:
        raise QwenImageError(f"{path}: bad header: tensor {name!r} takes {end - begin} bytes, its shape {expected}")
    return StoredTensor(name, dtype, tuple(shape), first_byte + begin, expected)
