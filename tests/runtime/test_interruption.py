"""Ctrl-C that Python drops is still the end of the command; what a caller has done with the signal stays as it is."""

import signal
import sys

import pytest

from qwen_image_engine.runtime.command import carry_out
from qwen_image_engine.runtime.commands.report import Report
from qwen_image_engine.runtime.interruption import check_interrupted, remembered_interruption
from qwen_image_engine.runtime.progress import ProgressBar
from qwen_image_engine.runtime.timing import Timings

pytestmark = pytest.mark.usefixtures("hears_interruptions")


class Dying:
    """Ctrl-C comes while it is freed, where no exception goes any further."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_dropped_one_is_remembered_until_the_end() -> None:
    before = sys.unraisablehook
    with remembered_interruption():
        check_interrupted()
        Dying()
        with pytest.raises(KeyboardInterrupt):
            check_interrupted()
        with pytest.raises(KeyboardInterrupt):
            ProgressBar("next", 0)
        with pytest.raises(KeyboardInterrupt), Timings().measure("run", "step"):
            pytest.fail("the next component ran")
    check_interrupted()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sys.unraisablehook is before


def test_one_that_arrives_is_as_always() -> None:
    with pytest.raises(KeyboardInterrupt), remembered_interruption():
        signal.raise_signal(signal.SIGINT)
    check_interrupted()


def test_the_command_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> Report:
        Dying()
        return Report({}, ["done"])

    assert carry_out(work, False, quiet=False) == 130
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "qwen-image: error: interrupted\n")


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with remembered_interruption():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            Dying()
            check_interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
