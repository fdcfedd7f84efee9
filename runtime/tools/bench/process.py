"""A contender in a process of its own: the side of the benchmark that talks to `worker`."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, Self

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.system.memory_use import MemoryUse
from qwen_image_engine.runtime.tools.bench.case import Case
from qwen_image_engine.runtime.tools.bench.contender import RunSample
from qwen_image_engine.runtime.tools.bench.result import ContenderInfo
from qwen_image_engine.runtime.tools.bench.spec import ContenderSpec

WORKER = "qwen_image_engine.runtime.tools.bench.worker"
CLOSING_S = 30.0
"""Seconds that a process may take to end after its input has ended; then it is killed. Freeing 30 GB takes seconds."""


class ContenderProcess:
    """A contender in a process of its own, loaded by the constructor; see `contender.Contender`."""

    def __init__(self, spec: ContenderSpec) -> None:
        """Start the process and wait until the contender is loaded.

        A baseline that is not available is no error: `facts.missing` gives the reason.

        Raises:
            QwenImageError: an engine is not available, the contender failed to load, or the process ended.
        """
        self._name = spec.name
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER, json.dumps(asdict(spec))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            # Ctrl-C is for this process, which ends that one without a word. The first is for POSIX systems alone, the
            # second for Windows.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        try:
            found = self._answer()["facts"]
        except BaseException:
            self._kill()
            self.close()
            raise
        peak = found["load_peak"]
        self._facts = ContenderInfo(**{**found, "load_peak": None if peak is None else MemoryUse(**peak)})

    @property
    def facts(self) -> ContenderInfo:
        """Name, version, precision and load of the contender; peak memory includes every draw so far."""
        return self._facts

    def draw(self, case: Case, number: int, *, watched: bool, picture: bool = False) -> RunSample:
        """Draw one picture or one batch; see `Contender.draw`.

        Raises:
            QwenImageError: the draw failed, or the process ended.
        """
        assert self._process.stdin is not None
        wanted = {"case": asdict(case), "number": number, "watched": watched, "picture": picture}
        try:
            self._process.stdin.write(json.dumps(wanted) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        found = self._answer()
        peaks = {stage: MemoryUse(**peak) for stage, peak in found["peaks"].items()}
        # The kernel counts each of the two in its own way, up to some pages a thread apart.
        told = [item.resident_bytes for item in peaks.values()] + [found["peak_bytes"], self._facts.peak_bytes]
        self._facts = replace(self._facts, peak_bytes=max((item for item in told if item is not None), default=None))
        return RunSample(
            {stage: tuple(seconds) for stage, seconds in found["sample"].items()},
            peaks,
            found["waiting"],
            None if found["picture"] is None else base64.b64decode(found["picture"]),
        )

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.close()
        try:
            self._process.wait(CLOSING_S)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:  # it may be in the middle of a picture
            self._kill()
        self.close()

    def _kill(self) -> None:
        """Kill the process with everything that it started, such as torch's compilers."""
        if sys.platform == "win32":
            self._process.kill()
        elif self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def _answer(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        found: Mapping[str, Any] = json.loads(line)
        if "error" in found:
            raise QwenImageError(f"{self._name}: {found['error']}")
        return found

    def _ended(self) -> QwenImageError:
        code = self._process.wait()
        cause = "; the system kills a process for which there is no memory" if code == -9 else ""
        return QwenImageError(f"{self._name}: its process ended with code {code}{cause}")
