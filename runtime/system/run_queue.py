"""How long this process's threads were ready to run and had no core: what other processes took; Linux alone tells."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def waited_s() -> dict[str, float]:
    """Seconds that each thread has waited on a run queue since it began, by its id; empty where the system is silent.

    The second field of /proc/self/task/*/schedstat, in nanoseconds (Documentation/scheduler/sched-stats.rst).
    """
    found = {}
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # a thread that has just ended
            found[file.parent.name] = int(file.read_text(encoding="ascii").split()[1]) / 1e9
    return found


def longest_wait(before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """Seconds that the thread which waited longest did between two readings, None where there are none.

    Threads that share an operator's work are done when the last of them is.
    """
    return max((seconds - before.get(thread, 0.0) for thread, seconds in after.items()), default=None)
