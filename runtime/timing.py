"""How long each engine took to load and to run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal


@dataclass(frozen=True)
class Timing:
    """One load or one run of a component's engine."""

    kind: Literal["load", "run"]
    component: str
    seconds: float


@dataclass
class Timings:
    """Everything since the pipeline was made, or since `clear`."""

    entries: list[Timing] = field(default_factory=list)

    @contextmanager
    def measure(self, kind: Literal["load", "run"], component: str) -> Iterator[None]:
        """Record what runs inside, unless it fails."""
        start = perf_counter()
        yield
        self.entries.append(Timing(kind, component, perf_counter() - start))

    def stages(self) -> dict[str, float]:
        """Seconds of all loads ("load_s") and of each component's runs together, in order ("step_s": all steps)."""
        totals: dict[str, float] = {}
        for entry in self.entries:
            stage = "load_s" if entry.kind == "load" else f"{entry.component}_s"
            totals[stage] = totals.get(stage, 0.0) + entry.seconds
        return totals

    def clear(self) -> None:
        """Forget everything."""
        self.entries.clear()
