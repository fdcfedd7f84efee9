"""Handling of Ctrl-C for the command, so that an interruption is never lost.

Python raises KeyboardInterrupt wherever the main thread is. In a weak reference's callback or in `__del__` the error is
printed and dropped, and compiled code may drop it too. The work would then continue to its end. So the signal also
cancels a token of the command. All work in many pieces checks this token between two pieces.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from qwen_image_engine.runtime.system.cancellation import Cancellation, cancellable


@contextmanager
def remembered_interruption() -> Iterator[None]:
    """Make SIGINT end the block, wherever the signal arrives.

    This does nothing outside the main thread, or if a caller has its own handler or ignores the signal.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    token = Cancellation(KeyboardInterrupt)
    report = sys.unraisablehook

    def interrupted(number: int, frame: FrameType | None) -> None:
        token.cancel()
        raise KeyboardInterrupt

    def dropped(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):  # that one is raised again by the token
            report(unraisable)

    signal.signal(signal.SIGINT, interrupted)
    sys.unraisablehook = dropped
    try:
        with cancellable(token):
            yield
    finally:
        sys.unraisablehook = report
        signal.signal(signal.SIGINT, signal.default_int_handler)
