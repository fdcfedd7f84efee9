"""How long each engine took to load and to run, and where it is asked for, how much memory that took."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from qwen_image_engine.runtime.system.cancellation import check_cancelled
from qwen_image_engine.runtime.system.memory_use import MemoryUse, MemoryWatch


@dataclass(frozen=True)
class Timing:
    """A load or a run of a component's engine, or a preview with all that it ran.

    Attributes:
        kind: "preview" has the component "preview".
        component: name of the component.
        seconds: time that it took.
        peak: most memory of the whole process meanwhile; None if it was not watched.
    """

    kind: Literal["load", "run", "preview"]
    component: str
    seconds: float
    peak: MemoryUse | None = None


@dataclass
class Timings:
    """Everything since the pipeline was made, or since `clear`."""

    entries: list[Timing] = field(default_factory=list)
    watch: MemoryWatch | None = None

    @contextmanager
    def measure(self, kind: Literal["load", "run"], component: str) -> Iterator[None]:
        """Record what runs inside, unless it fails.

        Raises:
            KeyboardInterrupt: it came before and got lost.
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
        """Record what runs inside as one preview, in the place of its parts."""
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
        """Record the seconds of many runs that were timed elsewhere: what is put into the list inside.

        Their peak is that of all of them together. Nothing is recorded if it fails.

        Raises:
            KeyboardInterrupt: as of `measure`.
        """
        check_cancelled()
        if self.watch is not None:
            self.watch.restart()
        seconds: list[float] = []
        yield seconds
        peak = self.watch.peak() if self.watch is not None else None
        self.entries += [Timing("run", component, each, peak) for each in seconds]

    def stages(self) -> dict[str, float]:
        """Seconds of all loads ("load_s") and of each component's runs together, in order ("step_s": all steps)."""
        totals: dict[str, float] = {}
        for entry in self.entries:
            stage = "load_s" if entry.kind == "load" else f"{entry.component}_s"
            totals[stage] = totals.get(stage, 0.0) + entry.seconds
        return totals

    def peaks(self) -> dict[str, MemoryUse]:
        """The most memory of each stage ("load step", "run step"), in order; empty where none was watched."""
        found: dict[str, MemoryUse] = {}
        for entry in self.entries:
            if entry.peak is not None:
                stage = f"{entry.kind} {entry.component}"
                found[stage] = entry.peak.peak(found.get(stage))
        return found

    def clear(self) -> None:
        """Forget everything."""
        self.entries.clear()
