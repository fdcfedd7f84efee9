"""Progress of work in stages, shown as bars on the terminal."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple, Self

from qwen_image_engine.runtime.system.progress import ProgressBar, Unit


class Bar(NamedTuple):
    """The bar of a stage. Stages with equal bars share one bar on the terminal.

    Attributes:
        label: text before the bar.
        unit: unit of the stage's count.
        resumes: whether the bar leaves out the work of an earlier run, so that the remaining time is estimated from the
            steps of this run alone.
    """

    label: str
    unit: Unit
    resumes: bool = False


class StageProgress:
    """A progress callback that shows a bar for each stage and times the stages.

    Call it with the stage, the amount done and the total.

    Attributes:
        seconds: duration of each stage [s], from its first call to the first call of the next stage or to the end.
    """

    def __init__(self, bar_of: Callable[[str], Bar]) -> None:
        self.seconds: dict[str, float] = {}
        self._bar_of = bar_of
        self._stage: str | None = None
        self._since = 0.0
        self._bars = ExitStack()
        self._shown_as: Bar | None = None
        self._bar: ProgressBar | None = None
        self._done = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show the state of a stage. Start a new bar if the stage has another bar or begins again."""
        self._enter(stage)
        shown_as = self._bar_of(stage)
        if self._bar is None or shown_as != self._shown_as or done < self._done:
            self._bars.close()
            self._shown_as, self._done = shown_as, done if shown_as.resumes else 0
            self._bar = self._bars.enter_context(ProgressBar(shown_as.label, total - self._done, shown_as.unit))
        self._bar.advance(done - self._done)
        self._done = done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.close()
        self._enter(None)

    def _enter(self, stage: str | None) -> None:
        now = time.perf_counter()
        if self._stage is not None:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now
