"""Cancellation tokens: found by the work they are for, and by no other; and turns that a cancelled thread leaves."""

import threading

import pytest

from qwen_image_engine.engines.core.errors import Cancelled
from qwen_image_engine.runtime.system.cancellation import Cancellation, cancellable, check_cancelled, on_cancel
from qwen_image_engine.runtime.system.turns import Turns


def test_work_finds_its_token_and_those_of_its_caller() -> None:
    command, request = Cancellation(KeyboardInterrupt), Cancellation()
    check_cancelled()
    with cancellable(command):
        with cancellable(request):
            check_cancelled()
            request.cancel()
            with pytest.raises(Cancelled):
                check_cancelled()
        check_cancelled()
        command.cancel()
        with pytest.raises(KeyboardInterrupt):
            check_cancelled()
    check_cancelled()


def test_a_cancelled_token_begins_nothing() -> None:
    token = Cancellation()
    token.cancel()
    with pytest.raises(Cancelled), cancellable(token):
        pytest.fail("begun")
    check_cancelled()


def test_other_threads_do_not_find_it() -> None:
    token = Cancellation()
    found: list[str] = []

    def work() -> None:
        check_cancelled()
        found.append("went on")

    with cancellable(token):
        token.cancel()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
    assert found == ["went on"]


def test_actions_are_called_once_and_from_the_thread_that_cancels() -> None:
    token = Cancellation()
    calls: list[int] = []
    with cancellable(token), on_cancel(lambda: calls.append(threading.get_ident())):
        thread = threading.Thread(target=token.cancel)
        thread.start()
        thread.join(60)
        assert calls == [thread.ident]
        token.cancel()
    assert len(calls) == 1
    with pytest.raises(Cancelled), cancellable(token):
        pytest.fail("begun")


def test_an_action_is_forgotten_when_its_work_is_done() -> None:
    token = Cancellation()
    calls: list[int] = []
    with cancellable(token):
        with on_cancel(lambda: calls.append(1)):
            pass
        token.cancel()
    assert calls == []


def test_without_a_token_nothing_can_be_cancelled() -> None:
    with on_cancel(lambda: pytest.fail("cancelled")):
        check_cancelled()


class TestTurns:
    def test_the_holder_may_take_its_turn_again(self) -> None:
        turns = Turns()
        with turns.take(), turns.take():
            pass
        done: list[int] = []

        def other() -> None:
            with turns.take():
                done.append(1)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(60)
        assert done == [1]

    def test_a_thread_that_waits_is_cancelled(self) -> None:
        turns, token = Turns(), Cancellation()
        errors: list[Cancelled] = []
        began = threading.Event()

        def wait() -> None:
            with cancellable(token):
                began.set()
                try:
                    with turns.take():
                        pytest.fail("it is another thread's turn")
                except Cancelled as error:
                    errors.append(error)

        with turns.take():
            thread = threading.Thread(target=wait)
            thread.start()
            assert began.wait(60)
            token.cancel()
            thread.join(60)
            assert len(errors) == 1
        with turns.take():  # and nothing of it is left
            pass
