"""Each end of an attempt is told, and a worker goes on after a crash and a hang."""

import sys
from pathlib import Path

import pytest

from benchmarks.reliability.attempts import (
    ACCEPTED,
    CRASH,
    HALF_WRITTEN,
    HANG,
    LONG,
    MEMORY,
    REFUSED,
    TRACEBACK,
    Job,
    Worker,
)
from tests.support import hostile

pytestmark = pytest.mark.process

ENDS = (
    (hostile.accept, ACCEPTED, ""),
    (hostile.refuse, REFUSED, "it is damaged"),
    (hostile.echo, LONG, "aaa"),
    (hostile.fault, TRACEBACK, "TypeError"),
    (hostile.panic, TRACEBACK, "a panic"),
    (hostile.leave_half, HALF_WRITTEN, "it is damaged"),
    *(((hostile.take_memory, MEMORY, "out of memory"),) if sys.platform == "linux" else ()),
    (hostile.crash, CRASH, "SIGKILL"),
    (hostile.accept, ACCEPTED, ""),
    (hostile.hang, HANG, "still running"),
    (hostile.accept, ACCEPTED, ""),
)


def test_each_end_is_told_and_the_worker_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    worker = Worker((Job(hostile.accept, tmp_path, tmp_path, output),))
    assert [outcome.state for outcome in worker.expected] == [ACCEPTED]
    for use, state, word in ENDS:
        output.unlink(missing_ok=True)
        limit_s = 1 if state == HANG else 60
        outcome = worker.attempt(Job(use, tmp_path, tmp_path, output), limit_s)
        assert (outcome.state, word in outcome.message) == (state, True), outcome
    worker.close()
