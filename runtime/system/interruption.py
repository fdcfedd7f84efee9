"""Ctrl-C that cannot get lost.

Python raises KeyboardInterrupt where the main thread is. In a weak reference's callback or in `__del__` it is printed
and dropped, and compiled code may drop it too; the work would go on to its end. So the command remembers the signal,
and whatever comes in many pieces asks between two of them.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_interrupted = threading.Event()


@contextmanager
def remembered_interruption() -> Iterator[None]:
    """Within it, SIGINT is remembered until the end, and still raises KeyboardInterrupt where it can.

    Nothing changes outside of the main thread, or where a caller has a handler of its own or ignores the signal.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    report = sys.unraisablehook

    def dropped(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):  # that one is told when it is raised again
            report(unraisable)

    _interrupted.clear()
    signal.signal(signal.SIGINT, _remember)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = report
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _interrupted.clear()


def check_interrupted() -> None:
    """Raise a KeyboardInterrupt that got lost: between stages, and before anything is written.

    Raises:
        KeyboardInterrupt: the signal came.
    """
    if _interrupted.is_set():
        raise KeyboardInterrupt


def _remember(number: int, frame: FrameType | None) -> None:
    _interrupted.set()
    raise KeyboardInterrupt
