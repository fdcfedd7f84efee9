"""The file of results. It is rewritten after every row, so that no failure and no time limit loses a row."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

LISTS = ("ceilings", "steps", "prefixes", "profiles", "loops", "parity")
NOT_REACHED = {"missing": "not reached"}


class Record:
    """A document of lists of rows. Its key `complete` says whether the benchmark reached the end."""

    def __init__(self, file: Path, facts: Mapping[str, Any]) -> None:
        self._file, self._began = file, perf_counter()
        self._document: dict[str, Any] = {"complete": False, **facts, "network": NOT_REACHED}
        self._document |= {"prefix": NOT_REACHED, "kernel": NOT_REACHED} | {name: [] for name in LISTS}
        file.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def put(self, part: str, value: Any) -> None:
        """Set one part of the document and write the file."""
        self._document[part] = value
        self._write()

    def add(self, part: str, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows to a list of the document, and write the file after each row."""
        for row in rows:
            print(describe(row) if part == "steps" else row, file=sys.stderr, flush=True)
            self._document[part].append(row)
            self._write()

    def _write(self) -> None:
        self._document["seconds"] = perf_counter() - self._began
        partial = self._file.with_name(f".{self._file.name}.partial")
        partial.write_text(json.dumps(self._document, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._file)


def describe(row: Mapping[str, Any]) -> str:
    """Return a row of steps as a line of progress."""
    if "missing" in row:
        found = row["missing"]
    else:
        reached = "unknown" if row["of_ceiling"] is None else f"{row['of_ceiling']:.0%}"
        found = (
            f"{row['median_ms']:9.2f} ms, p90 {row['p90_ms']:9.2f}, first {row['first_ms']:9.1f}, "
            f"{row['tflop_per_s']:6.1f} TFLOP/s, {reached} of the ceiling"
        )
    return f"{row.get('pixels', ''):5} {row['way']:60} {found}"
