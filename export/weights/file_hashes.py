"""SHA-256 of the checkpoint's files, in separate threads: 33 GB take as long as tracing the graphs does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import Self

from qwen_image_engine.runtime.system.files import file_sha256

# A disk reads no faster for more.
_MOST_THREADS = 4
_TELL_S = 0.1


def hashing_threads() -> int:
    """Return the number of threads that hash files at once; one core is left to the caller."""
    return min(max(1, (os.cpu_count() or 1) - 1), _MOST_THREADS)


class _Stopped(Exception):
    """The end of a hashing thread: nobody waits for the hash any longer."""


class FileHashes(Mapping[Path, str]):
    """A mapping from files to their SHA-256.

    Asking for a hash waits for it. Leaving the `with` block stops the reads in progress.
    """

    def __init__(self, files: Sequence[Path], waiting: Callable[[], None]) -> None:
        """Start reading.

        Args:
            files: files to hash, begun in this order.
            waiting: callback in the caller's thread, ten times a second while it waits for a hash.
        """
        self._waiting = waiting
        self._read = 0
        self._lock = Lock()
        self._stopped = Event()
        self._threads = ThreadPoolExecutor(hashing_threads(), "sha256")
        self._found: dict[Path, Future[str]] = {
            file: self._threads.submit(file_sha256, file, self._count) for file in files
        }

    @property
    def bytes_read(self) -> int:
        """Bytes read so far, of all files."""
        return self._read

    def __getitem__(self, file: Path) -> str:
        """Return the hash of a file; wait until it is known.

        Raises:
            QwenImageError: the file cannot be read.
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
