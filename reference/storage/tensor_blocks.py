"""Readers of a stored tensor as a stream of blocks: memory holds one block, whatever the tensor's size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from qwen_image_engine.engines.core.dtypes import STORED, STORED_FLOATS
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import open_regular
from qwen_image_engine.reference.storage.finite import check_finite
from qwen_image_engine.reference.storage.merged_tensor import MergedTensor
from qwen_image_engine.reference.storage.tensor_file import TensorInfo

BLOCK_BYTES = 4 << 20
# Rows are worked on in float32, several copies of a block at a time, and the allocator keeps what these leave over.
ROW_BLOCK_BYTES = 1 << 20


def tensor_blocks(source: TensorInfo, block_bytes: int = BLOCK_BYTES) -> Iterator[memoryview]:
    """Yield the tensor's bytes, `block_bytes` at a time. Each view is valid until the next.

    A tensor with updates is computed in blocks of a few whole rows, always the same rows whatever `block_bytes` is, so
    that every reader gets the same bits.

    Raises:
        QwenImageError: the file cannot be read or ends early; or the tensor has updates, and a value of the weight or
            of an update is not finite.
    """
    if isinstance(source, MergedTensor):
        for rows in _merged_rows(source):
            yield tensor_bytes(rows.reshape(-1))
        return
    buffer = bytearray(min(block_bytes, source.nbytes))
    try:
        with open_regular(source.file, buffering=0) as file:
            file.seek(source.offset)
            for start in range(0, source.nbytes, block_bytes):
                block = memoryview(buffer)[: min(block_bytes, source.nbytes - start)]
                _read_all(file.readinto, block, source)
                yield block
    except OSError as error:
        # Reads alone are in here: what a caller does with a block raises in the caller.
        raise QwenImageError(f"{source.file}: cannot be read ({error.strerror or error})") from error


def finite_blocks(source: TensorInfo, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, Tensor]]:
    """Yield a float tensor's values in its dtype, flat, each block after the index of its first value.

    Each block is valid until the next; `tensor_blocks` describes the blocks.

    Raises:
        NotFiniteError: a value is NaN or infinite.
        QwenImageError: the file cannot be read or ends early.
    """
    dtype: torch.dtype = getattr(torch, STORED_FLOATS[source.dtype].name)
    first = 0
    for block in tensor_blocks(source, block_bytes):
        values = torch.frombuffer(block, dtype=dtype)
        check_finite(source, values, first)
        yield first, values
        first += values.numel()


def row_blocks(source: TensorInfo) -> Iterator[Tensor]:
    """Yield a matrix (N, K) as blocks of whole rows (n, K) in float32.

    Raises:
        QwenImageError: the file cannot be read or ends early, or a value is not finite.
    """
    columns = source.shape[1]
    row_bytes = columns * STORED[source.dtype].bytes
    for _, values in finite_blocks(source, max(1, ROW_BLOCK_BYTES // row_bytes) * row_bytes):
        yield values.reshape(-1, columns).float()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes, row-major; a view if the tensor lies so in memory."""
    return tensor.contiguous().view(torch.uint8).numpy().data


def read_tensor(source: TensorInfo) -> Tensor:
    """Read a tensor of any dtype into memory of its own.

    Raises:
        QwenImageError: the file cannot be read or ends early.
    """
    memory, done = torch.empty(source.nbytes, dtype=torch.uint8), 0
    for block in tensor_blocks(source):
        memory[done : done + len(block)] = torch.frombuffer(block, dtype=torch.uint8)
        done += len(block)
    dtype: torch.dtype = getattr(torch, STORED[source.dtype].name)
    return memory.view(dtype).reshape(source.shape)


def _merged_rows(source: MergedTensor) -> Iterator[Tensor]:
    """Yield blocks of rows (n, K) of the sum, in float32."""
    updates = [(item.factor, _finite(item.up), _finite(item.down)) for item in source.updates]
    first = 0
    for rows in row_blocks(source.base):
        last = first + len(rows)
        for factor, up, down in updates:
            rows = rows + factor * (up[first:last] @ down)
        first = last
        yield rows


def _finite(source: TensorInfo) -> Tensor:
    values = read_tensor(source).float()
    check_finite(source, values)
    return values


def _read_all(readinto: Callable[[memoryview], int | None], block: memoryview, source: TensorInfo) -> None:
    rest = block
    while rest:
        count = readinto(rest)
        if not count:
            raise QwenImageError(f"{source.file}: ends inside tensor {source.name!r}; download it again")
        rest = rest[count:]
