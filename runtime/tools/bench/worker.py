"""The worker process of one contender: `python -m qwen_image_engine.runtime.tools.bench.worker SPEC`.

In a process of its own, peak memory belongs to one contender, contenders share no thread pools, and the process of the
runtime stays without torch. The worker reads one JSON request a line from standard input and answers each request in
one line; see `process`.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, TextIO

from qwen_image_engine.engines.core.entries import load_entry
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.system.memory_use import MemoryWatch, highest_resident_bytes
from qwen_image_engine.runtime.tools.bench.case import Case
from qwen_image_engine.runtime.tools.bench.contender import Runner, Unavailable, run_once
from qwen_image_engine.runtime.tools.bench.load import load_contender
from qwen_image_engine.runtime.tools.bench.result import ContenderInfo
from qwen_image_engine.runtime.tools.bench.spec import CHECK_WEIGHTS, ContenderSpec

_IDLE_S = 1.0
"""Seconds after the end of standard input in which a worker that waits for a request notices."""


def main() -> None:
    """Load, then answer requests until standard input ends."""
    # Whatever libraries print goes to standard error: what was standard output is for the answers alone.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    with suppress(BrokenPipeError), answers:  # who asked may have gone
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _serve(answers)


def _serve(answers: TextIO) -> None:
    spec = ContenderSpec(**json.loads(sys.argv[1]))
    requests = _Requests()
    loaded: list[Runner] = []
    if not _answer(answers, partial(_load, spec, loaded)):
        return
    (drawer,) = loaded
    while (line := requests.next()) is not None:
        if not _answer(answers, partial(_draw, spec, drawer, json.loads(line))):
            return
    drawer.close()


class _Requests:
    """The lines of standard input.

    If the input ends while the worker loads or draws, whoever asked is gone, and the worker ends in the middle of it.
    """

    def __init__(self) -> None:
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._ended = Event()
        Thread(target=self._read, daemon=True).start()

    def next(self) -> bytes | None:
        """Wait for the next line and return it; None at the end."""
        line = self._lines.get()
        if line is None:
            self._ended.set()
        return line

    def _read(self) -> None:
        # Without a buffer: its lock, held by a thread, is a fatal error at the interpreter's end.
        with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)
        if not self._ended.wait(_IDLE_S):
            os._exit(1)


def _load(spec: ContenderSpec, loaded: list[Runner]) -> Mapping[str, Any]:
    began = time.perf_counter()
    with MemoryWatch() as watch:
        try:
            drawer = load_contender(spec, watch)
        except Unavailable as error:
            if spec.role == "baseline":
                return {"facts": asdict(ContenderInfo(spec.name, spec.role, missing=str(error))), "missing": True}
            raise
        seconds, peak = time.perf_counter() - began, watch.overall()
    if spec.hashes:
        load_entry(CHECK_WEIGHTS)(spec)
    loaded.append(drawer)
    facts = ContenderInfo(
        name=spec.name,
        role=spec.role,
        version=drawer.version,
        precision=drawer.precision,
        load_s=seconds,
        load_peak=peak,
        peak_bytes=highest_resident_bytes(),
        disk_bytes=drawer.disk_bytes,
    )
    return {"facts": asdict(facts)}


def _draw(spec: ContenderSpec, drawer: Runner, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    case, number = Case(**wanted["case"]), int(wanted["number"])
    picture = bool(wanted["picture"])
    if wanted["watched"]:
        with MemoryWatch() as watch:
            drawn = run_once(drawer, case, number, spec.resolution, watch, picture=picture)
    else:
        drawn = run_once(drawer, case, number, spec.resolution, picture=picture)
    peaks = {stage: asdict(peak) for stage, peak in drawn.peaks.items()}
    return {
        "sample": drawn.sample,
        "peaks": peaks,
        "waiting": drawn.waiting,
        "peak_bytes": highest_resident_bytes(),
        "picture": None if drawn.picture is None else base64.b64encode(drawn.picture).decode("ascii"),
    }


def _answer(answers: TextIO, work: Callable[[], Mapping[str, Any]]) -> bool:
    """Send the result of `work` or its error. Return whether the worker can go on."""
    try:
        found = work()
    except (QwenImageError, MemoryError) as error:
        found = {"error": str(error) or "out of memory"}
    answers.write(json.dumps(found) + "\n")
    answers.flush()
    return not found.keys() & {"error", "missing"}


if __name__ == "__main__":
    main()
