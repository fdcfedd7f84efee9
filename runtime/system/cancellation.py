"""Cancellation of work from any thread.

A token belongs to one piece of work: a request, or a command. The code that does the work finds its tokens in its
context, so that two requests in two threads are cancelled separately.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from qwen_image_engine.engines.core.errors import Cancelled


class Cancellation:
    """A cancellation token. A cancelled token stays cancelled.

    Args:
        error: error to raise when the work finds that it is cancelled.
    """

    def __init__(self, error: type[BaseException] = Cancelled) -> None:
        self._error = error
        self._cancelled = False
        self._lock = threading.RLock()  # a signal's handler may cancel where its own thread holds it
        self._actions: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """Cancel the work and call the actions that `on_cancel` registered. A second call does nothing."""
        with self._lock:
            actions = [] if self._cancelled else list(self._actions)
            self._cancelled = True
        for action in actions:
            action()

    def check(self) -> None:
        """Raise the token's error if the token is cancelled.

        Raises:
            Cancelled: the token is cancelled. A token with another error raises that error instead.
        """
        if self._cancelled:
            raise self._error("the request was cancelled")

    @contextmanager
    def on_cancel(self, action: Callable[[], None]) -> Iterator[None]:
        """Call `action` if the token is cancelled during the block. The thread that cancels makes the call.

        Raises:
            Cancelled: the token is already cancelled. A token with another error raises that error instead.
        """
        with self._lock:
            self._actions.append(action)
        try:
            self.check()  # after the registration: a call of `cancel` between the two is not lost
            yield
        finally:
            with self._lock:
                self._actions.remove(action)


_tokens: ContextVar[tuple[Cancellation, ...]] = ContextVar("cancellations", default=())


@contextmanager
def cancellable(token: Cancellation) -> Iterator[None]:
    """Add `token` to the tokens of this context for the block.

    Raises:
        Cancelled: the token is already cancelled. A token with another error raises that error instead.
    """
    before = _tokens.set((*_tokens.get(), token))
    try:
        token.check()
        yield
    finally:
        _tokens.reset(before)


def check_cancelled() -> None:
    """Raise if the work of this context is cancelled. Call this between stages and before anything is written.

    Raises:
        Cancelled: the request was cancelled.
        KeyboardInterrupt: the command was interrupted.
    """
    for token in _tokens.get():
        token.check()


@contextmanager
def on_cancel(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` if the work of this context is cancelled during the block. The thread that cancels makes the call.

    Raises:
        Cancelled: the request was already cancelled.
        KeyboardInterrupt: the command was already interrupted.
    """
    tokens = _tokens.get()
    if not tokens:
        yield
        return
    with tokens[-1].on_cancel(action):
        for token in tokens[:-1]:
            token.check()
        yield
