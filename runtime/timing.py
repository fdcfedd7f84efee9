"""Seconds that each engine took to load and to run, and peaks of memory if they are watched."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from qwen_image_engine.runtime.system.cancellation import check_cancelled
from qwen_image_engine.runtime.system.memory_use import MemoryUse, MemoryWatch


@dataclass(frozen=True)
class Timing:
    """The timing of one load or run of a component's engine, or of one preview with everything that it ran.

    Attributes:
        kind: kind of work; a "preview" has the component "preview".
        component: name of the component.
        seconds: duration [s].
        peak: peak memory of the whole process meanwhile; None if it was not watched.
    """

    kind: Literal["load", "run", "preview"]
    component: str
    seconds: float
    peak: MemoryUse | None = None


@dataclass
class Timings:
    """All timings since the pipeline was created, or since `clear`."""

    entries: list[Timing] = field(default_factory=list)
    watch: MemoryWatch | None = None

    @contextmanager
    def measure(self, kind: Literal["load", "run"], component: str) -> Iterator[None]:
        """Record the seconds and the peak of the block, unless it fails.

        Raises:
            Cancelled: the request was cancelled before the block.
            KeyboardInterrupt: the command was interrupted before the block.
        """
        check_cancelled()
        if self.watch is not None:
            self.watch.restart()
        start = perf_counter()
        yield
        seconds = perf_counter() - start
        self.entries.append(Timing(kind, component, seconds, self.watch.peak() if self.watch is not None else None))

    @contextmanager
    def measure_preview(self) -> Iterator[None]:
        """Record the block as one preview, which replaces the runs inside. Loads inside stay recorded as loads."""
        first = len(self.entries)
        start = perf_counter()
        try:
            yield
        finally:
            parts = self.entries[first:]
            loads = [entry for entry in parts if entry.kind == "load"]
            seconds = perf_counter() - start - sum(entry.seconds for entry in loads)
            peak: MemoryUse | None = None
            for entry in parts:
                peak = entry.peak.peak(peak) if entry.peak is not None else peak
            self.entries[first:] = [*loads, Timing("preview", "preview", seconds, peak)]

    @contextmanager
    def measure_runs(self, component: str) -> Iterator[list[float]]:
        """Record the seconds of many runs that the block timed itself and appended to the yielded list.

        All of them get the peak of the whole block. Nothing is recorded if the block fails.

        Raises:
            Cancelled: the request was cancelled before the block.
            KeyboardInterrupt: the command was interrupted before the block.
        """
        check_cancelled()
        if self.watch is not None:
            self.watch.restart()
        seconds: list[float] = []
        yield seconds
        peak = self.watch.peak() if self.watch is not None else None
        self.entries += [Timing("run", component, each, peak) for each in seconds]

    def stages(self) -> dict[str, float]:
        """Return the seconds of all loads ("load_s") and of each component's runs together ("step_s"), in order."""
        totals: dict[str, float] = {}
        for entry in self.entries:
            stage = "load_s" if entry.kind == "load" else f"{entry.component}_s"
            totals[stage] = totals.get(stage, 0.0) + entry.seconds
        return totals

    def peaks(self) -> dict[str, MemoryUse]:
        """Return the peak memory of each stage ("load step", "run step"), in order; empty if memory was not watched."""
        found: dict[str, MemoryUse] = {}
        for entry in self.entries:
            if entry.peak is not None:
                stage = f"{entry.kind} {entry.component}"
                found[stage] = entry.peak.peak(found.get(stage))
        return found

    def clear(self) -> None:
        """Remove all timings."""
        self.entries.clear()
