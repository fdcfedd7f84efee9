"""A safetensors file written as a stream: the header from shapes alone, then every tensor in blocks.

Memory holds one block, whatever the tensors' sizes.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from qwen_image_engine.engines.core.dtypes import STORED, STORED_FLOATS
from qwen_image_engine.reference.storage.finite import check_converted
from qwen_image_engine.reference.storage.tensor_blocks import finite_blocks, tensor_bytes
from qwen_image_engine.reference.storage.tensor_file import TensorInfo

# Tensors start at a multiple of 64 bytes after a padded header, so that engines can use mapped ones in place.
_ALIGNMENT = 64


class Entry(Protocol):
    """A tensor to write: name, dtype and shape for the header, and the bytes as a stream.

    Tensors that are computed from the checkpoint's tensors are entries of their own kinds. The file asks for the bytes
    of one entry after the other, in the order in which it was given the entries.
    """

    @property
    def name(self) -> str:
        """Name that readers ask for."""
        ...

    @property
    def dtype(self) -> str:
        """Dtype in safetensors' spelling."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes, row-major."""
        ...

    def blocks(self) -> Iterator[memoryview]:
        """Yield the bytes; each view is valid until the next.

        Raises:
            QwenImageError: a source file cannot be read, or ends early.
        """
        ...


def entry_bytes(entry: Entry) -> int:
    """Return the bytes that an entry takes in the new file."""
    return math.prod(entry.shape) * STORED[entry.dtype].bytes


@dataclass(frozen=True)
class Stored:
    """A tensor of the checkpoint, written in `dtype`."""

    source: TensorInfo
    dtype: str

    @property
    def name(self) -> str:
        """Name of the tensor in the checkpoint."""
        return self.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor in the checkpoint."""
        return self.source.shape

    def blocks(self) -> Iterator[memoryview]:
        """Yield the bytes as stored, or converted block by block.

        Raises:
            QwenImageError: the file cannot be read or ends early; or a value is not finite, as stored or in `dtype`.
        """
        wanted: torch.dtype = getattr(torch, STORED_FLOATS[self.dtype].name)
        for first, values in finite_blocks(self.source):
            converted = values.to(wanted)  # the same tensor if it is in this dtype already
            if converted is not values:
                check_converted(self.source, converted, first)
            yield tensor_bytes(converted)


@dataclass(frozen=True)
class Place:
    """The place of a tensor's bytes: file in the graph's own folder, offset, number of bytes, dtype."""

    file: str
    offset: int
    nbytes: int
    dtype: str


class WeightFile:
    """The layout of a file that is to hold `tensors`, known before a byte is written."""

    def __init__(self, name: str, tensors: Sequence[Entry]) -> None:
        self.name = name
        self.tensors = tuple(tensors)
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        begin = 0
        for tensor in tensors:
            end = begin + entry_bytes(tensor)
            entries[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
            begin = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        self.header = struct.pack("<Q", len(text)) + text
        self.nbytes = len(self.header) + begin

    def places(self) -> dict[str, Place]:
        """Return the place of each tensor, by name."""
        found = {}
        offset = len(self.header)
        for tensor in self.tensors:
            found[tensor.name] = Place(self.name, offset, entry_bytes(tensor), tensor.dtype)
            offset += entry_bytes(tensor)
        return found

    def write(self, folder: Path, progress: Callable[[int], None]) -> str:
        """Write the file into `folder`, and return its SHA-256.

        `progress` is called with the number of bytes of each written block.

        Raises:
            QwenImageError: a source file cannot be read, or ends early.
            OSError: the file cannot be written.
        """
        digest = hashlib.sha256(self.header)
        with (folder / self.name).open("wb", buffering=0) as file:
            file.write(self.header)
            for tensor in self.tensors:
                for block in tensor.blocks():
                    digest.update(block)
                    _write_all(file.write, block)
                    progress(len(block))
        return digest.hexdigest()


def _write_all(write: Callable[[memoryview], int | None], block: memoryview) -> None:
    rest = block
    while rest:
        rest = rest[write(rest) or 0 :]
