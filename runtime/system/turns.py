"""Turns of threads on something that one of them may use at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from qwen_image_engine.runtime.system.cancellation import check_cancelled, on_cancel


class Turns:
    """A lock that its holder may take again, that another thread may give back, and that a cancelled thread leaves.

    `threading.RLock` must be given back by the thread that took it, and a generator may be closed by another one.
    """

    def __init__(self) -> None:
        self._free = threading.Condition(threading.RLock())
        self._holder: int | None = None
        self._depth = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Wait for the other threads, and hold the turn inside.

        Raises:
            Cancelled: the work of this context was cancelled meanwhile.
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
