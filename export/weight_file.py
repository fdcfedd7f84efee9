"""A safetensors file written as a stream: the header from shapes alone, then every tensor in blocks.

Memory holds one block, whatever the tensors' sizes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from qwen_image_engine.engines.errors import QwenImageError
from qwen_image_engine.reference.component import FLOAT_DTYPES
from qwen_image_engine.reference.tensor_file import ITEM_BYTES, TensorInfo

_BLOCK_BYTES = 4 << 20
# Tensors start at a multiple of 64 bytes after a padded header, so that engines can use mapped ones in place.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Stored:
    """A tensor to write: the checkpoint's, in `dtype` (safetensors' spelling)."""

    source: TensorInfo
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes in the new file."""
        return self.source.elements * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes are: a file in the graph's own folder."""

    file: str
    offset: int
    nbytes: int
    dtype: str


class WeightFile:
    """The layout of a file that is to hold `tensors`, known before a byte is written."""

    def __init__(self, name: str, tensors: Sequence[Stored]) -> None:
        self.name = name
        self.tensors = tuple(tensors)
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        begin = 0
        for tensor in tensors:
            end = begin + tensor.nbytes
            entries[tensor.source.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.source.shape),
                "data_offsets": [begin, end],
            }
            begin = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        self.header = struct.pack("<Q", len(text)) + text
        self.nbytes = len(self.header) + begin

    def places(self) -> dict[str, Place]:
        """Stored name -> place."""
        found = {}
        offset = len(self.header)
        for tensor in self.tensors:
            found[tensor.source.name] = Place(self.name, offset, tensor.nbytes, tensor.dtype)
            offset += tensor.nbytes
        return found

    def write(self, folder: Path, progress: Callable[[int], None]) -> str:
        """Write the file into `folder`, telling `progress` the bytes written, and return its SHA-256.

        Raises:
            QwenImageError: a source file cannot be read, or ends early.
            OSError: the file cannot be written.
        """
        digest = hashlib.sha256(self.header)
        with (folder / self.name).open("wb", buffering=0) as file:
            file.write(self.header)
            for tensor in self.tensors:
                for block in _blocks(tensor):
                    digest.update(block)
                    _write_all(file.write, block)
                    progress(len(block))
        return digest.hexdigest()


def _blocks(tensor: Stored) -> Iterator[memoryview]:
    """The tensor's bytes in its new dtype, each view valid until the next."""
    source = tensor.source
    stored: torch.dtype = getattr(torch, FLOAT_DTYPES[source.dtype])
    wanted: torch.dtype = getattr(torch, FLOAT_DTYPES[tensor.dtype])
    buffer = bytearray(min(_BLOCK_BYTES, source.nbytes))
    try:
        with source.file.open("rb", buffering=0) as file:
            file.seek(source.offset)
            for start in range(0, source.nbytes, _BLOCK_BYTES):
                block = memoryview(buffer)[: min(_BLOCK_BYTES, source.nbytes - start)]
                _read_all(file.readinto, block, source)
                if stored == wanted:
                    yield block
                else:
                    values = torch.frombuffer(block, dtype=stored).to(wanted)
                    yield values.view(torch.uint8).numpy().data
    except OSError as error:
        # Reads alone are in here: a failed write is raised where the caller resumes.
        raise QwenImageError(f"{source.file}: cannot be read ({error.strerror or error})") from error


def _read_all(readinto: Callable[[memoryview], int | None], block: memoryview, source: TensorInfo) -> None:
    rest = block
    while rest:
        count = readinto(rest)
        if not count:
            raise QwenImageError(f"{source.file}: ends inside tensor {source.name!r}; download it again")
        rest = rest[count:]


def _write_all(write: Callable[[memoryview], int | None], block: memoryview) -> None:
    rest = block
    while rest:
        rest = rest[write(rest) or 0 :]
