"""Progress lines on a terminal: a bar and a spinner. Both write nothing if the stream is not a terminal."""

import io
import itertools
import sys
import time
from types import TracebackType
from typing import Literal, Self, TextIO

from qwen_image_engine.runtime.system.cancellation import check_cancelled

WIDTH = 24
REDRAW_S = 0.1

Unit = Literal["steps", "bytes"]


class ProgressBar:
    """A line that is redrawn in place: label, bar, count, elapsed seconds and remaining seconds.

    The line is written only if `stream` (standard error) is a terminal, and erased when the bar is closed.
    """

    def __init__(self, label: str, total: int, unit: Unit = "steps", stream: TextIO | None = None) -> None:
        """Draw an empty bar.

        Args:
            label: text before the bar.
            total: number of steps or bytes at the end; 0 if the stage does not know it and shows the label alone.
            unit: unit of `total`.
            stream: stream to write to; None for standard error.

        Raises:
            Cancelled: the request was cancelled.
            KeyboardInterrupt: the command was interrupted.
        """
        check_cancelled()
        # A process without a console (a service, pythonw) has no standard error at all.
        self._stream = sys.stderr or io.StringIO() if stream is None else stream
        self._shown = self._stream.isatty()
        self._label, self._total, self._unit = label, total, unit
        self._done = 0
        self._start = time.monotonic()
        self._drawn = -REDRAW_S
        self._draw()

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more steps or bytes.

        Raises:
            Cancelled: the request was cancelled.
            KeyboardInterrupt: the command was interrupted.
        """
        check_cancelled()
        self._done += amount
        if self._done >= self._total or time.monotonic() - self._drawn >= REDRAW_S:
            self._draw()

    def close(self) -> None:
        """Erase the line."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _draw(self) -> None:
        if not self._shown:
            return
        self._drawn = time.monotonic()
        self._stream.write(f"\r\x1b[K{self._label} {self._state() if self._total else '…'}")
        self._stream.flush()

    def _state(self) -> str:
        share = min(1.0, self._done / self._total)
        bar = ("█" * round(WIDTH * share)).ljust(WIDTH, "░")
        gone_s = self._drawn - self._start
        left = f", {gone_s / share - gone_s:.0f} s left" if share else ""
        count = f"{self._done}/{self._total}"
        if self._unit == "bytes":
            count = f"{self._done / 2**20:.0f}/{self._total / 2**20:.0f} MiB"
        return f"{bar} {count}  {gone_s:.0f} s{left}"


_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Spinner:
    """A line that each call of `show` redraws in place: a rotating sign, label, elapsed seconds and words.

    The line is written only if `stream` (standard error) is a terminal, and erased at the end of the block.
    """

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr or io.StringIO() if stream is None else stream
        self._shown = self._stream.isatty()
        self._label = label
        self._frames = itertools.cycle(_FRAMES)
        self._start = time.monotonic()

    def show(self, words: str) -> None:
        """Draw the next frame with `words`."""
        if self._shown:
            gone_s = time.monotonic() - self._start
            self._stream.write(f"\r\x1b[K{next(self._frames)} {self._label} {gone_s:.0f} s: {words}")
            self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False
