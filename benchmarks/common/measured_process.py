"""Measurement of a command in a process of its own: duration and peak memory."""

import resource
import subprocess
import time
from dataclasses import dataclass

from qwen_image_engine.runtime.system.memory_use import MemoryUse, MemoryWatch


@dataclass(frozen=True)
class Measured:
    """The output and the cost of a command.

    Attributes:
        output: standard output.
        seconds: wall-clock time [s].
        cpu_seconds: CPU time of all cores [s]; unlike `seconds`, other processes hardly change it.
        peak: peak memory; None if the system does not report it.
    """

    output: str
    seconds: float
    cpu_seconds: float
    peak: MemoryUse | None


def run_measured(*command: object) -> Measured:
    """Run `command` and measure it. It inherits the standard error of this process.

    Raises:
        CalledProcessError: the command exits with a code other than 0.
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
