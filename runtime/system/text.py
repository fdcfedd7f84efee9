"""Text for a person: tables, sizes, durations, and commands to copy."""

import shlex
import sys
from collections.abc import Iterable, Sequence


def table(rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Return rows as lines with aligned columns, two spaces apart. Columns numbered in `right` align to the right."""
    cells = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def command_line(*words: object) -> str:
    """Return a command line that the system's shell splits into these words."""
    texts = list(map(str, words))
    if sys.platform == "win32":
        from subprocess import list2cmdline

        return list2cmdline(texts)
    return shlex.join(texts)


def plural(count: int, one: str, many: str | None = None) -> str:
    """Return a number of things for a person: "1 step", "2 steps". `many` is `one` with an s unless it is given."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def size_text(count: int) -> str:
    """Return a number of bytes for a person, in decimal units like the sizes of disks and checkpoints."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} B"


def duration_text(seconds: float) -> str:
    """Return a number of seconds for a person: "40 s", "3.5 min"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
