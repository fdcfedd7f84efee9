"""Signals end the command, also one that Python drops; what a caller has done with a signal stays as it is."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from qwen_image_engine.runtime.system.cancellation import check_cancelled
from qwen_image_engine.runtime.system.interruption import handed_over, interruptible

pytestmark = pytest.mark.usefixtures("hears_interruptions")


DROPPED = """
import signal, sys
from qwen_image_engine.runtime.cli.main import carry_out
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.system.cancellation import check_cancelled
from qwen_image_engine.runtime.system.interruption import handed_over, interruptible
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
    with interruptible():
        signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("arrived")
check_cancelled()
before = sys.unraisablehook
with interruptible():
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
    found = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, check=False, timeout=60)
    assert (found.returncode, found.stdout) == (130, "arrived\ntold\ntold\ntold\n"), found.stderr
    assert found.stderr == "qwen-image: error: interrupted\n"


ENDED = """
import os, signal, sys, threading, time
from qwen_image_engine.runtime.cli.entry import main
from qwen_image_engine.runtime.cli.verbs import doctor
from qwen_image_engine.runtime.system.interruption import REPEAT_S

signal.signal(signal.SIGINT, signal.default_int_handler)
number, then = int(sys.argv.pop(1)), sys.argv.pop(1)


def execute(options):
    try:
        # While the main thread is in a call that Python does not end.
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        threading.Event().wait()
    finally:
        if then == "removes":
            signal.raise_signal(number)  # by a held key, or from `timeout`, which sends it twice
            print("removed", file=sys.stderr)
        else:
            time.sleep(1.2 * REPEAT_S)
            signal.raise_signal(number)
            threading.Event().wait()


doctor.execute = execute
sys.exit(main())
"""


HANDED_OVER = """
import os, signal, sys, time
from qwen_image_engine.runtime.cli.entry import main
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.cli.verbs import doctor
from qwen_image_engine.runtime.system.interruption import REPEAT_S, handed_over

signal.signal(signal.SIGINT, signal.default_int_handler)
heard = []


def execute(options):
    with handed_over(lambda: heard.append(1)):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            time.sleep(1.2 * REPEAT_S)
    print(len(heard), file=sys.stderr)
    if options.json:
        signal.raise_signal(signal.SIGTERM)
    return VerbResult({}, ["done"])


doctor.execute = execute
sys.exit(main())
"""


Words = tuple[str, ...]
SIGNALS = [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "ended by SIGTERM")]
HANGS: list[Words] = [(ENDED, str(int(signal.Signals[name])), "hangs", "doctor", "--json") for name, *_ in SIGNALS]
HANDS_OVER: list[Words] = [(HANDED_OVER, "doctor"), (HANDED_OVER, "doctor", "--json")]


@pytest.fixture(scope="module")
def ended() -> Iterator[Callable[[Words], subprocess.CompletedProcess[str]]]:
    """`ended(words)`: a process at its end. Those that wait for seconds are started together."""

    def start(words: Words) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    running = {words: start(words) for words in (*HANGS, *HANDS_OVER)}

    def wait(words: Words) -> subprocess.CompletedProcess[str]:
        if words not in running:
            running[words] = start(words)
        process = running[words]
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    yield wait
    for process in running.values():
        process.kill()
        process.communicate()


@pytest.mark.process
@pytest.mark.parametrize("then", ["removes", "hangs"])
@pytest.mark.parametrize(("name", "code", "words"), SIGNALS)
def test_signals_end_the_command(
    ended: Callable[[Words], subprocess.CompletedProcess[str]], name: str, code: int, words: str, then: str
) -> None:
    """The first lets the command remove what it has made; a later one ends it at once, without a traceback."""
    found = ended((ENDED, str(int(signal.Signals[name])), then, "doctor", "--json"))
    removed = "removed\n" if then == "removes" else ""
    assert (found.returncode, found.stderr) == (code, f"{removed}qwen-image: error: {words}\n")
    assert json.loads(found.stdout) == {"error": words, "exit_code": code}


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs signals of POSIX")
def test_signals_of_a_caller_stay_as_they_are() -> None:
    """`nohup` ignores SIGHUP, a shell's background jobs ignore SIGINT, and a caller may have a handler."""
    heard: list[int] = []
    handlers = {
        signal.SIGINT: signal.SIG_IGN,
        signal.SIGHUP: signal.SIG_IGN,
        signal.SIGTERM: lambda *_: heard.append(1),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with interruptible():
            for number, handler in handlers.items():
                assert signal.getsignal(number) is handler
                signal.raise_signal(number)
            check_cancelled()
        assert heard == [1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs signals of POSIX")
def test_signals_are_as_before_after_a_block() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers[1:]]
    try:
        handlers = [signal.getsignal(number) for number in numbers]
        with pytest.raises(KeyboardInterrupt), interruptible() as interruption:
            signal.raise_signal(signal.SIGHUP)
        assert (interruption.words, interruption.exit_code) == ("ended by SIGHUP", 129)
        assert [signal.getsignal(number) for number in numbers] == handlers
    finally:
        for number, handler in zip(numbers[1:], before, strict=True):
            signal.signal(number, handler)


@pytest.mark.process
@pytest.mark.parametrize(("flags", "code", "line"), [([], 0, ""), (["--json"], 143, "ended by SIGTERM")])
def test_signals_that_are_handed_over_end_nothing(
    ended: Callable[[Words], subprocess.CompletedProcess[str]], flags: list[str], code: int, line: str
) -> None:
    """Three of them, each of which comes twice; after the block the command hears them again."""
    found = ended((HANDED_OVER, "doctor", *flags))
    assert found.returncode == code
    assert found.stderr == "3\n" + (f"qwen-image: error: {line}\n" if line else "")


def test_handing_over_leaves_handlers_as_they_were() -> None:
    before = signal.getsignal(signal.SIGINT)
    heard: list[int] = []
    with handed_over(lambda: heard.append(1)):
        signal.raise_signal(signal.SIGINT)
    assert heard == [1]
    assert signal.getsignal(signal.SIGINT) is before
