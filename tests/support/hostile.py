"""Uses of a folder that end badly, for a worker of `benchmarks.reliability.attempts`; importable by its process."""

import os
import signal
import time

from benchmarks.reliability.attempts import Job
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.cli.main import carry_out
from qwen_image_engine.runtime.cli.shared.result import VerbResult


def refuse(job: Job) -> int:
    return _fail(QwenImageError("it is damaged"))


def echo(job: Job) -> int:
    return _fail(QwenImageError("a" * 200_000))


def fault(job: Job) -> int:
    return _fail(TypeError("no such thing"))


def panic(job: Job) -> int:
    raise BaseException("a panic")


def leave_half(job: Job) -> int:
    job.output.write_bytes(b"half")
    return _fail(QwenImageError("it is damaged"))


def take_memory(job: Job) -> int:
    def work() -> VerbResult:
        bytearray(2 << 30)
        return VerbResult({}, [])

    return carry_out(work, False, quiet=False)


def crash(job: Job) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def hang(job: Job) -> int:
    time.sleep(600)
    return 0


def accept(job: Job) -> int:
    return 0


def _fail(error: Exception) -> int:
    def work() -> VerbResult:
        raise error

    return carry_out(work, False, quiet=False)
