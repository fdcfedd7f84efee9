"""The signals that end the command: Ctrl-C (SIGINT), SIGTERM and SIGHUP. None is lost, and none leaves files behind.

The first signal raises KeyboardInterrupt in the main thread, so that every unfinished file is removed. Python raises it
only between two bytecodes. In a weak reference's callback or in `__del__` the error is printed and dropped, and
compiled code may drop it too. So a thread, which hears of the signal at once, also cancels a token of the command. That
ends an engine's run, and all work in many pieces checks the token between two pieces.

A later signal ends the process at once. The next process that writes to the same place removes what is left.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from types import FrameType

from qwen_image_engine.runtime.system.cancellation import Cancellation, cancellable

REPEAT_S = 0.5
"""Seconds after a signal in which another one is the same request.

A held Ctrl-C repeats, and `timeout`, `uv run` and others send a signal to the process and to its group.
"""


class Interruption:
    """The state of the command's interruption.

    Attributes:
        token: token that the first signal cancels.
        number: number of the first signal; None before it.
        numbers: numbers of the signals that are heard.
    """

    def __init__(self, last_words: Callable[[Interruption], None]) -> None:
        self.token = Cancellation(KeyboardInterrupt)
        self.number: int | None = None
        self.numbers: tuple[int, ...] = ()
        self._last_words = last_words
        self._raised = self._finished = self._handed_over = False

    @property
    def words(self) -> str:
        """Words for the error line."""
        if self.number in (None, signal.SIGINT):
            return "interrupted"
        return f"ended by {signal.Signals(self.number).name}"

    @property
    def exit_code(self) -> int:
        """Exit code of a process that the signal ended: 128 and the signal's number."""
        return 128 + (self.number or signal.SIGINT)

    def finish(self) -> None:
        """Note that the work is done: a signal raises no error any more, and ends the process at once."""
        self._finished = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread.

        Raises:
            KeyboardInterrupt: this is the first signal.
        """
        if self._finished:
            return
        self._cancel(number)
        if not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def watch(self, arrived: int, numbers: Collection[int]) -> None:
        """Read the numbers of signals from the pipe `arrived` until its end. Obey those in `numbers`."""
        began: float | None = None
        with os.fdopen(arrived, "rb", buffering=0) as pipe:
            while received := pipe.read(1):
                number, now = received[0], time.monotonic()
                if self._handed_over or number not in numbers or (began is not None and now - began < REPEAT_S):
                    continue
                if began is None and (self.number is not None or not self._finished):
                    began = now
                    self._cancel(number)
                    continue
                self.number = self.number or number
                if not self._finished:
                    self._last_words(self)
                os._exit(self.exit_code)

    @contextmanager
    def hand_over(self) -> Iterator[None]:
        """Hear no signal during the block."""
        self._handed_over = True
        try:
            yield
        finally:
            self._handed_over = False

    def _cancel(self, number: int) -> None:
        if self.number is None:
            self.number = number
        self.token.cancel()


_current: ContextVar[Interruption | None] = ContextVar("interruption", default=None)


@contextmanager
def interruptible(
    *, process_ends: bool = False, last_words: Callable[[Interruption], None] = lambda interruption: None
) -> Iterator[Interruption]:
    """Make SIGINT, SIGTERM and SIGHUP end the block, wherever they arrive.

    This does nothing outside the main thread. Signals for which a caller has its own handler, or which are ignored (as
    under `nohup`), stay as they are. A block inside another one shares its state.

    Args:
        process_ends: whether the process ends after the block. The system's own handling of the signals, which prints
            no traceback, is then left behind in the place of Python's.
        last_words: function that is called, in another thread, before a later signal ends the process.
    """
    outer = _current.get()
    interruption = outer or Interruption(last_words)
    ours = threading.current_thread() is threading.main_thread()
    if outer is not None or not ours:
        try:
            yield interruption
        finally:
            interruption.finish()
        return
    report = sys.unraisablehook

    def dropped(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):  # that one is raised again by the token
            report(unraisable)

    set_before = _current.set(interruption)
    handled = {number: signal.getsignal(number) for number in _ending_signals()}
    interruption.numbers = tuple(handled)
    sys.unraisablehook = dropped
    try:
        with _watched(interruption, handled):
            for number in handled:
                signal.signal(number, interruption.handle)
            try:
                with cancellable(interruption.token):
                    yield interruption
            finally:
                interruption.finish()
    finally:
        for number, handler in handled.items():
            signal.signal(number, signal.SIG_DFL if process_ends else handler)
        sys.unraisablehook = report
        _current.reset(set_before)


@contextmanager
def handed_over(handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` for each signal of the block, for a program that ends in an order of its own, and with exit code 0.

    The main thread makes the calls, between two bytecodes. A signal within `REPEAT_S` of a call is the same request.
    This does nothing outside the main thread.
    """
    called: float | None = None

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal called
        now = time.monotonic()
        if called is None or now - called >= REPEAT_S:
            called = now
            handle()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interruption = _current.get()
    numbers = _ending_signals() if interruption is None else interruption.numbers
    before = {number: signal.getsignal(number) for number in numbers}
    with nullcontext() if interruption is None else interruption.hand_over():
        for number in numbers:
            signal.signal(number, hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _watched(interruption: Interruption, numbers: Collection[int]) -> Iterator[None]:
    """Start the thread that watches for signals; it ends after the block."""
    read, write = os.pipe()
    if sys.platform != "win32":
        os.set_blocking(write, False)  # `set_wakeup_fd` demands it; Python 3.11 does not have it on Windows
    threading.Thread(target=interruption.watch, args=(read, numbers), name="signals", daemon=True).start()
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)


def _ending_signals() -> list[int]:
    """Return the signals that would end this process, and for which nobody has a handler of their own."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [int(getattr(signal, name)) for name in names if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)]
