"""Work on several items at the same time, in threads that stop together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

from qwen_image_engine.engines.core.errors import QwenImageError

Item = TypeVar("Item")
Result = TypeVar("Result")
Check = Callable[[], None]
"""A function that a piece of work calls now and then; it raises once the work is to stop."""

_WAIT_S = 0.2
"""Longest wait without a look at signals, which Windows gives to no thread that waits."""


class _Stopped(QwenImageError):
    """The error of work that ends because other work failed. Nobody sees it."""


def side_by_side(work: Callable[[Item, Check], Result], items: Sequence[Item], most: int) -> list[Result]:
    """Return the result of `work` for each of `items`, in their order; at most `most` are in work at a time.

    They begin in their order. Once one of them fails, or this thread is interrupted, no other begins, those in work
    stop at their next check, and the failure is raised when they have.
    """
    if most <= 1:
        return [work(item, lambda: None) for item in items]
    stop = Event()

    def check() -> None:
        if stop.is_set():
            raise _Stopped("other work failed or was interrupted")

    def begin(item: Item) -> Result:
        check()
        return work(item, check)

    with ThreadPoolExecutor(most) as pool:
        futures = [pool.submit(begin, item) for item in items]
        try:
            left = set(futures)
            while left:
                done, left = wait(left, _WAIT_S, FIRST_EXCEPTION)
                for future in done:
                    future.result()
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            raise
