"""Limits of a caller for rows, beside their thresholds: `--fail-on step=0.01`."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from qwen_image_engine.engines.core.errors import UsageError


@dataclass(frozen=True)
class Limit:
    """The largest relative L2 that a caller allows in a row, over all cases.

    The row is a component's name or "teacher_forced". The limit applies to the same figure as the row's threshold:
    the worst step, or the mean over steps. The threshold still applies, so a limit can only be stricter.
    """

    row: str
    relative_l2: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a limit from ROW=VALUE.

        Raises:
            UsageError: the text is not ROW=VALUE with a finite value of 0 or more.
        """
        row, equals, value = text.partition("=")
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if not (row and equals and math.isfinite(limit) and limit >= 0):
            raise UsageError(f"--fail-on {text!r}: expected ROW=VALUE with a relative L2, for example step=0.01")
        return cls(row, limit)

    def check(self, rows: Collection[str]) -> None:
        """Raise if the limit's row does not exist.

        Raises:
            UsageError: the row is not among `rows`.
        """
        if self.row not in rows:
            raise UsageError(f"--fail-on {self.row}={self.relative_l2:g}: no such row; known: {', '.join(rows)}")
