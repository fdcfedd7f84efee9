"""SHA-256 of the checkpoint's files, in separate threads: 33 GB take as long as tracing the graphs does.

Weights that no other code reads are checked for values that are not finite in the same pass.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import Self

from qwen_image_engine.engines.core.dtypes import STORED_FLOATS
from qwen_image_engine.reference.storage.tensor_blocks import finite_blocks, tensor_blocks, tensor_bytes
from qwen_image_engine.reference.storage.tensor_file import TensorInfo
from qwen_image_engine.runtime.system.files import file_sha256

# A disk reads no faster for more.
_MOST_THREADS = 4
_TELL_S = 0.1
_BLOCK_BYTES = 32 << 20


def hashing_threads() -> int:
    """Return the number of threads that hash files at once; one core is left to the caller."""
    return min(max(1, (os.cpu_count() or 1) - 1), _MOST_THREADS)


class _Stopped(Exception):
    """The end of a hashing thread: nobody waits for the hash any longer."""


class FileHashes(Mapping[Path, str]):
    """A mapping from files to their SHA-256.

    Asking for a hash waits for it. Leaving the `with` block stops the reads in progress.
    """

    def __init__(self, files: Sequence[Path], waiting: Callable[[], None], tensors: Iterable[TensorInfo] = ()) -> None:
        """Start reading.

        Args:
            files: files to hash, begun in this order.
            waiting: callback in the caller's thread, ten times a second while it waits for a hash.
            tensors: tensors of the files whose values must be finite.
        """
        tensors = tuple(tensors)
        self._waiting = waiting
        self._read = 0
        self._lock = Lock()
        self._stopped = Event()
        self._threads = ThreadPoolExecutor(hashing_threads(), "sha256")
        self._found: dict[Path, Future[str]] = {
            file: self._threads.submit(finite_sha256, file, tensors, self._count) for file in files
        }

    @property
    def bytes_read(self) -> int:
        """Bytes read so far, of all files."""
        return self._read

    def __getitem__(self, file: Path) -> str:
        """Return the hash of a file; wait until it is known.

        Raises:
            QwenImageError: the file cannot be read, or a value of a tensor is not finite.
        """
        found = self._found[file]
        while True:
            try:
                return found.result(_TELL_S)
            except TimeoutError:
                self._waiting()

    def __iter__(self) -> Iterator[Path]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._threads.shutdown(cancel_futures=True)

    def _count(self, count: int) -> None:
        if self._stopped.is_set():
            raise _Stopped
        with self._lock:
            self._read += count


def finite_sha256(path: Path, tensors: Iterable[TensorInfo], progress: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file, and check the tensors that are in it, in one pass.

    `progress` is called with the bytes of each block.

    Raises:
        NotFiniteError: a value of a tensor is not finite.
        QwenImageError: the file cannot be read.
    """
    file = path.resolve()
    within = sorted((item.stored for item in tensors if item.file == file), key=lambda item: item.offset)
    if not within:
        return file_sha256(path, progress)
    digest = hashlib.sha256()
    for part in _whole(file, within):
        for block in _checked_blocks(part):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return digest.hexdigest()


def _checked_blocks(part: TensorInfo) -> Iterator[memoryview]:
    if part.dtype in STORED_FLOATS:
        return (tensor_bytes(values) for _, values in finite_blocks(part, _BLOCK_BYTES))
    return tensor_blocks(part, _BLOCK_BYTES)


def _whole(file: Path, tensors: Iterable[TensorInfo]) -> Iterator[TensorInfo]:
    """Yield the tensors of a file in the order of their bytes, and the bytes between them as tensors of bytes."""
    end = 0
    for tensor in tensors:
        if tensor.offset >= end:
            yield _bytes(file, end, tensor.offset)
            yield tensor
            end = tensor.offset + tensor.nbytes
    yield _bytes(file, end, file.stat().st_size)


def _bytes(file: Path, begin: int, end: int) -> TensorInfo:
    return TensorInfo("", "U8", (end - begin,), begin, end - begin, file)
