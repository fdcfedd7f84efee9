"""Ctrl-C that Python drops is still the end of the command; what a caller has done with the signal stays as it is."""

import signal
import subprocess
import sys

import pytest

from qwen_image_engine.runtime.system.cancellation import check_cancelled
from qwen_image_engine.runtime.system.interruption import remembered_interruption

pytestmark = pytest.mark.usefixtures("hears_interruptions")


DROPPED = """
import signal, sys
from qwen_image_engine.runtime.cli.main import carry_out
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.system.cancellation import check_cancelled
from qwen_image_engine.runtime.system.interruption import remembered_interruption
from qwen_image_engine.runtime.system.progress import ProgressBar
from qwen_image_engine.runtime.timing import Timings

signal.signal(signal.SIGINT, signal.default_int_handler)


class Dying:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)  # where no exception goes any further


def work():
    Dying()
    return VerbResult({}, ["done"])


def next_component():
    with Timings().measure("run", "step"):
        print("the next component ran")


try:
    with remembered_interruption():
        signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("arrived")
check_cancelled()
before = sys.unraisablehook
with remembered_interruption():
    check_cancelled()
    Dying()
    for ask in (check_cancelled, lambda: ProgressBar("next", 0), next_component):
        try:
            ask()
        except KeyboardInterrupt:
            print("told")
check_cancelled()
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert sys.unraisablehook is before
sys.exit(carry_out(work, False, quiet=False))
"""


@pytest.mark.process
def test_a_dropped_one_is_remembered_until_the_end() -> None:
    """In a process of its own: one with hundreds of tests behind it crashed at a signal in a destructor."""
    found = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, check=False, timeout=120)
    assert (found.returncode, found.stdout) == (130, "arrived\ntold\ntold\ntold\n"), found.stderr
    assert found.stderr == "qwen-image: error: interrupted\n"


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with remembered_interruption():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
            check_cancelled()
    finally:
        signal.signal(signal.SIGINT, before)
