"""The run queue wait of this process's threads: the time that they were ready and had no core. Linux only.

The wait shows how much CPU time other processes took.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def run_queue_wait_s() -> dict[str, float]:
    """Return the seconds that each thread has waited on a run queue since it began, by thread id.

    The source is the second field of /proc/self/task/*/schedstat, in nanoseconds
    (Documentation/scheduler/sched-stats.rst). The result is empty if the system does not report it.
    """
    found = {}
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # a thread that has just ended
            found[file.parent.name] = int(file.read_text(encoding="ascii").split()[1]) / 1e9
    return found


def longest_run_queue_wait(before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """Return the longest wait of a thread between two readings [s]; None if `after` has no threads.

    Threads that share an operator's work are done when the last of them is done.
    """
    return max((seconds - before.get(thread, 0.0) for thread, seconds in after.items()), default=None)
