"""Cancellation of work by whoever asked for it, from any thread.

A token belongs to one piece of work: a request, or a command. The code that does the work finds the tokens that it is
done for in its context, so that two requests in two threads are cancelled apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from qwen_image_engine.engines.core.errors import Cancelled


class Cancellation:
    """A token that is cancelled once and for all.

    Args:
        error: raised where the work finds that it is cancelled.
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
        """Cancel, and call what `on_cancel` registered; a second call does nothing."""
        with self._lock:
            actions = [] if self._cancelled else list(self._actions)
            self._cancelled = True
        for action in actions:
            action()

    def check(self) -> None:
        """Raise the token's error if it is cancelled.

        Raises:
            Cancelled: or the error that the token was made with.
        """
        if self._cancelled:
            raise self._error("the request was cancelled")

    @contextmanager
    def on_cancel(self, action: Callable[[], None]) -> Iterator[None]:
        """Call `action` if the token is cancelled inside, from the thread that cancels.

        Raises:
            Cancelled: the token is cancelled already.
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
    """Do the work inside for `token`, beside the tokens that the caller's own work is done for."""
    before = _tokens.set((*_tokens.get(), token))
    try:
        token.check()
        yield
    finally:
        _tokens.reset(before)


def check_cancelled() -> None:
    """Raise if the work of this context is cancelled: between stages, and before anything is written.

    Raises:
        Cancelled: the request was cancelled.
        KeyboardInterrupt: the command was interrupted.
    """
    for token in _tokens.get():
        token.check()


@contextmanager
def on_cancel(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` if the work of this context is cancelled inside, from the thread that cancels.

    Raises:
        Cancelled: it is cancelled already.
        KeyboardInterrupt: the command was interrupted already.
    """
    tokens = _tokens.get()
    if not tokens:
        yield
        return
    with tokens[-1].on_cancel(action):
        for token in tokens[:-1]:
            token.check()
        yield
