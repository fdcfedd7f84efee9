"""A way of drawing in the tests' own process, on toy engines whose seconds are given, not measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from qwen_image_engine.engines.core.contract_check import Array
from qwen_image_engine.runtime import timing
from qwen_image_engine.runtime.system.memory_use import MemoryWatch
from qwen_image_engine.runtime.tools.bench import contender
from qwen_image_engine.runtime.tools.bench.case import Case
from qwen_image_engine.runtime.tools.bench.contender import Runner, RunSample, run_once
from qwen_image_engine.runtime.tools.bench.result import ContenderInfo
from tests.support.numpy_engines import Journal, NumpyEngine

RESOLUTION = 32


@dataclass
class Clock:
    """Seconds that pass only when an engine says so."""

    now: float = 0.0

    def read(self) -> float:
        return self.now


@dataclass
class ClockedJournal(Journal):
    """A journal of the engines, and how long each run of a component is to take."""

    clock: Clock = field(default_factory=Clock)
    seconds: Callable[[str], float] = lambda component: 0.0


class ClockedEngine(NumpyEngine):
    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert isinstance(self.journal, ClockedJournal)
        self.journal.clock.now += self.journal.seconds(self.contract.component)
        return super().run(inputs)


@dataclass
class LocalContender:
    """See `bench_way.Contender`; `log` is of all ways together."""

    facts: ContenderInfo
    drawer: Runner
    log: list[str]

    def draw(self, case: Case, number: int, *, watched: bool, picture: bool = False) -> RunSample:
        self.log.append(f"{self.facts.name}{number}{' watched' if watched else ''}")
        if watched:
            with MemoryWatch() as watch:
                return run_once(self.drawer, case, number, RESOLUTION, watch, picture=picture)
        return run_once(self.drawer, case, number, RESOLUTION, picture=picture)

    def close(self) -> None:
        self.drawer.close()


def use_clock(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Every measurement of a pipeline reads `clock`, and `numpy_pipeline` makes engines that move it."""
    monkeypatch.setattr(timing, "perf_counter", clock.read)
    monkeypatch.setattr(contender, "perf_counter", clock.read)
    monkeypatch.setattr(contender, "run_queue_wait_s", dict)
    monkeypatch.setattr("tests.support.numpy_engines.NumpyEngine", ClockedEngine)
