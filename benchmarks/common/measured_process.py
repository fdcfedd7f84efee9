"""A command in a process of its own: how long it took and the most memory it held."""

import resource
import subprocess
import time
from dataclasses import dataclass

from qwen_image_engine.runtime.system.memory_use import MemoryUse, MemoryWatch


@dataclass(frozen=True)
class Measured:
    """What it printed, and what that took.

    Attributes:
        output: standard output.
        seconds: by the clock.
        cpu_seconds: of every core; what is left of `seconds` where other processes take turns.
        peak: None where the system does not tell.
    """

    output: str
    seconds: float
    cpu_seconds: float
    peak: MemoryUse | None


def run_measured(*command: object) -> Measured:
    """Run `command`; its standard error goes where this process's does.

    Raises:
        CalledProcessError: it failed.
    """
    words = [str(word) for word in command]
    began, cpu = time.perf_counter(), _children_seconds()
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process,
        MemoryWatch(process.pid) as watch,
    ):
        output, _ = process.communicate()
    seconds = time.perf_counter() - began
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words, output)
    return Measured(output, seconds, _children_seconds() - cpu, watch.overall())


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
