"""A lock for a resource that one thread uses at a time, with cancellation of waiting threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from qwen_image_engine.runtime.system.cancellation import check_cancelled, on_cancel


class Turns:
    """A re-entrant lock that another thread may release. A cancelled thread stops waiting for it.

    Only the thread that acquired a `threading.RLock` may release it, but another thread may close a generator.
    """

    def __init__(self) -> None:
        self._free = threading.Condition(threading.RLock())
        self._holder: int | None = None
        self._depth = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Wait for the other threads, then hold the lock for the block.

        Raises:
            Cancelled: the request of this context was cancelled while it waited.
            KeyboardInterrupt: the command was interrupted while it waited.
        """
        self._acquire()
        try:
            yield
        finally:
            self._release()

    def _acquire(self) -> None:
        own = threading.get_ident()
        with self._free:
            if self._holder not in (None, own):
                with on_cancel(self._wake):
                    while self._holder is not None:
                        check_cancelled()
                        self._free.wait()
            self._holder = own
            self._depth += 1

    def _release(self) -> None:
        with self._free:
            self._depth -= 1
            if self._depth == 0:
                self._holder = None
                self._free.notify_all()

    def _wake(self) -> None:
        with self._free:
            self._free.notify_all()
