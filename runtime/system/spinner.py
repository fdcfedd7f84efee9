"""A spinner with elapsed time on a terminal, and nothing anywhere else."""

import io
import itertools
import sys
import time
from types import TracebackType
from typing import Self, TextIO

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Spinner:
    """One line that is redrawn in place whenever `show` is called: a turning sign, seconds gone, and words.

    It is written to `stream` (standard error) only where that is a terminal, and erased when it is closed.
    """

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr or io.StringIO() if stream is None else stream
        self._shown = self._stream.isatty()
        self._label = label
        self._frames = itertools.cycle(_FRAMES)
        self._start = time.monotonic()

    def show(self, words: str) -> None:
        """Draw the next frame."""
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
