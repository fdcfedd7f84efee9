"""Attempts to use a folder that may be damaged: in this process, or in a worker that may crash, hang or need memory."""

import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from PIL import Image

from qwen_image_engine.runtime.cli.main import carry_out, main
from qwen_image_engine.runtime.cli.shared.result import VerbResult

MEMORY_BYTES = 1 << 30
"""Memory that a worker may have, with the packages that it has imported [bytes]."""

LONGEST_MESSAGE = 2000
RENEWED_AFTER = 500
"""Attempts after which a worker starts again, so that memory which libraries keep does not count."""

PROMPTS = ("a red circle in the center on a white background", "左边有一个蓝色的正方形，白色背景")
CALIBRATION: Mapping[str, Any] = {"steps": 3, "sizes": [(64, 64), (96, 32)], "seed": 5}

SAME, ANOTHER, ACCEPTED, REFUSED = "the same picture", "another picture", "accepted", "refused"
TRACEBACK, MEMORY, LONG, HALF_WRITTEN = "traceback", "out of memory", "long message", "half-written"
CRASH, HANG = "crash", "hang"


@dataclass(frozen=True)
class Job:
    """An attempt to use a folder.

    Attributes:
        use: function that uses the folder as a command does and returns the command's exit code.
        folder: folder that may be damaged.
        checkpoint: whole checkpoint, which a calibration is of.
        output: file that a picture is written to; it does not exist.
        engine: engine that draws.
        reference: reference image; None to draw without one.
    """

    use: Callable[["Job"], int]
    folder: Path
    checkpoint: Path
    output: Path
    engine: str = "onnxruntime"
    reference: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """The end of an attempt: one of the states above, the message, and a hash of the picture's pixels."""

    state: str
    message: str = ""
    pixels: str | None = None


def attempt(job: Job) -> Outcome:
    """Attempt to use a folder as a command does, and tell how it ended."""
    errors = io.StringIO()
    try:
        with redirect_stderr(errors), redirect_stdout(io.StringIO()):
            code = job.use(job)
    except BaseException as error:  # a panic of a library that is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome(TRACEBACK, shortened(f"{type(error).__name__}: {error}"))
    return _outcome(code, errors.getvalue(), job.output)


def _outcome(code: int, text: str, output: Path) -> Outcome:
    """Return the outcome of a command by its exit code and its standard error, where lines on progress come first."""
    if code == 0:
        return _accepted(output)
    _, _, message = text.rstrip("\n").rpartition("qwen-image: error: ")
    state = HALF_WRITTEN if output.exists() else REFUSED
    if "Traceback (most recent call last)" in text or code not in (1, 2):
        state, message = TRACEBACK, text
    elif "out of memory" in message or "not enough memory" in message:
        state = MEMORY
    elif len(message) > LONGEST_MESSAGE or "\n" in message:
        state = LONG
    return Outcome(state, shortened(message))


def shortened(text: str, most: int = LONGEST_MESSAGE) -> str:
    """Return the beginning and the end of a long text."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def _accepted(output: Path) -> Outcome:
    if not output.exists():
        return Outcome(ACCEPTED)
    with Image.open(output) as picture:
        pixels = sha256(picture.tobytes()).hexdigest()
    output.unlink()
    return Outcome(SAME, pixels=pixels)


def _draw(job: Job) -> int:
    words = ["run", job.folder, "-p", "a red circle", "-o", job.output, "-W", 64, "-H", 64, "-s", 2, "--seed", 0]
    words += ["--threads", 1, "--engine", job.engine]
    if job.reference is not None:
        words += ["--reference", job.reference, "--reference-resolution", 256]
    return main([str(word) for word in words])


def _open_checkpoint(job: Job) -> int:
    """Check a checkpoint as `export` does, and load its networks."""

    def work() -> VerbResult:
        from qwen_image_engine.export.bundle.request import ExportRequest
        from qwen_image_engine.export.targets import choose_target
        from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
        from qwen_image_engine.reference.load import load_network

        checkpoint = Checkpoint.open(job.folder)
        request = ExportRequest.of(checkpoint, choose_target("cpu", "fp32"))
        for network in request.networks:
            load_network(checkpoint, network)
        return VerbResult({}, [])

    return carry_out(work, False, quiet=False)


def _open_calibration(job: Job) -> int:
    def work() -> VerbResult:
        from qwen_image_engine.calibration.observe.record import Calibration
        from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint

        Calibration.open(job.folder, Checkpoint.open(job.checkpoint))
        return VerbResult({}, [])

    return carry_out(work, False, quiet=False)


def _resume_calibration(job: Job) -> int:
    def work() -> VerbResult:
        from qwen_image_engine.calibration.observe.calibrate import calibrate

        calibrate(job.checkpoint, job.folder, PROMPTS, **CALIBRATION)
        return VerbResult({}, [])

    return carry_out(work, False, quiet=False)


SUBJECTS: Mapping[str, Callable[[Job], int]] = {
    "bundle": _draw,
    "checkpoint": _open_checkpoint,
    "calibration": _open_calibration,
    "unfinished calibration": _resume_calibration,
}
"""Use of a folder by its kind."""


class Worker:
    """A process that makes attempts, and is started again after a crash or a hang.

    Args:
        whole: attempts on whole folders, made before the memory is limited, so that everything is imported.
    """

    def __init__(self, whole: tuple[Job, ...]) -> None:
        self._whole = whole
        self.expected: tuple[Outcome, ...] = ()
        """Outcomes of `whole`."""
        self._start()

    def attempt(self, job: Job, limit_s: float) -> Outcome:
        """Make an attempt that may take `limit_s` seconds."""
        if self._made == RENEWED_AFTER:
            self.close()
            self._start()
        self._made += 1
        self._end.send(job)
        try:
            if self._end.poll(limit_s):
                outcome: Outcome = self._end.recv()
                return outcome
            state, message = HANG, f"still running after {limit_s:g} s"
        except (EOFError, ConnectionResetError):
            self._process.join()
            state, message = CRASH, _exit_words(self._process.exitcode)
        self._process.kill()
        self._process.join()
        self._end.close()
        self._start()
        return Outcome(state, message)

    def close(self) -> None:
        """End the process."""
        self._end.send(None)
        self._process.join()
        self._end.close()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._end, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_attempt_all, args=(theirs, self._whole), daemon=True)
        self._process.start()
        theirs.close()
        self.expected = tuple(self._end.recv())
        self._made = 0


def _attempt_all(jobs: Connection, whole: tuple[Job, ...]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # messages of libraries, past Python's streams
    jobs.send([attempt(job) for job in whole])
    _limit_memory()
    while (job := jobs.recv()) is not None:
        jobs.send(attempt(job))


def _limit_memory() -> None:
    """Limit the address space to what is taken, and as much as keeps the memory below `MEMORY_BYTES`; only on Linux."""
    if sys.platform != "linux":
        return
    import resource

    taken, resident = (
        int(size) * resource.getpagesize() for size in Path("/proc/self/statm").read_text(encoding="ascii").split()[:2]
    )
    limit = taken + max(MEMORY_BYTES - resident, MEMORY_BYTES // 4)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _exit_words(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
