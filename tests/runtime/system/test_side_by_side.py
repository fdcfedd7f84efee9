"""Work side by side: results in order, at most so many at a time, and an end together."""

import threading
import time
from collections.abc import Callable

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.system.side_by_side import side_by_side


@pytest.mark.parametrize("most", [0, 1, 2, 8])
def test_results_are_in_the_order_of_the_items(most: int) -> None:
    def work(item: int, check: Callable[[], None]) -> int:
        time.sleep(0.01 * (5 - item))  # the last is ready first
        check()
        return item * item

    assert side_by_side(work, range(5), most) == [0, 1, 4, 9, 16]


def test_no_more_are_in_work_than_asked_for() -> None:
    lock, at_work, highest = threading.Lock(), 0, 0

    def work(item: int, check: Callable[[], None]) -> None:
        nonlocal at_work, highest
        with lock:
            at_work += 1
            highest = max(highest, at_work)
        time.sleep(0.02)
        with lock:
            at_work -= 1

    side_by_side(work, range(9), 3)
    assert highest == 3


@pytest.mark.parametrize("error", [QwenImageError("this one fails"), KeyboardInterrupt("and this is Ctrl-C")])
def test_a_failure_stops_the_others_at_their_next_check(error: BaseException) -> None:
    stopped, begun = [], []
    waiting = threading.Event()

    def work(item: str, check: Callable[[], None]) -> None:
        begun.append(item)
        if item == "fails":
            waiting.wait()
            raise error
        waiting.set()
        try:
            for _ in range(1000):
                check()
                time.sleep(0.01)
        except QwenImageError:
            stopped.append(item)
            raise

    with pytest.raises(type(error), match=str(error)):
        side_by_side(work, ["long", "fails", "never"], 2)
    assert stopped == ["long"]
    assert "never" not in begun
