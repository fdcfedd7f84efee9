"""The start of a build in its own process, and the wait for its result."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.tensorrt.build.job import BuildJob, BuildResult

# -P: what lies in the working directory is no module.
COMMAND = (sys.executable, "-P", "-m", "qwen_image_engine.engines.tensorrt.build.worker")

_WAIT_S = 0.1
_LAST_WORDS = 300

Watch = Callable[[str], None]
"""Function that is called with the current work of the builder, ten times a second."""


def run_build(job: BuildJob, watch: Watch, command: Sequence[str] = COMMAND) -> BuildResult:
    """Build `job` in a process and wait for the result.

    Raises:
        QwenImageError: the build failed, or its process ended without an answer.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8"
        )
        try:
            said = _converse(process, job, watch)
        finally:
            process.kill()  # nothing happens to one that has ended
            process.wait()
        if "result" in said:
            return BuildResult.from_json(said["result"])
        if "error" in said:
            raise QwenImageError(str(said["error"]))
        raise _crash(job.component, process.returncode, log)


def _converse(process: subprocess.Popen[str], job: BuildJob, watch: Watch) -> Mapping[str, Any]:
    """Send the job to the process and return its last message, {} if the process ended without one."""
    assert process.stdin is not None
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        with process.stdin as stdin:
            json.dump(job.to_json(), stdin)
    except BrokenPipeError:
        pass  # it ended at once; its exit code says why
    doing = "starting"
    while True:
        try:
            line = lines.get(timeout=_WAIT_S)
        except queue.Empty:
            watch(doing)
            continue
        if line is None:
            process.wait()
            return {}
        message = json.loads(line)
        if "phase" not in message:
            process.wait()
            return dict(message)
        steps = f" {message['done']}/{message['steps']}" if message["steps"] else ""
        doing = f"{message['phase']}{steps}"
        watch(doing)


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _crash(component: str, code: int, log: IO[str]) -> QwenImageError:
    log.seek(0)
    words = " ".join(log.read().split())[-_LAST_WORDS:] or "nothing"
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return QwenImageError(
        f"{component}: the process that builds its engine ended with {how}; its last words: {words}. "
        "Where that is SIGKILL, memory of the host ran out: free some, export with --precision fp8 or int8, or build "
        "on another machine"
    )
