"""Tables of the results of benchmarks/gpu.sh, if they are committed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.documents import tables as document_tables
from benchmarks.documents.tables import markdown, result


def gpu() -> str:
    """Return the tables of the committed results of benchmarks/gpu.sh: steps, prefix, profiles, parity."""
    if not (document_tables.RESULTS / "gpu.json").is_file():
        return "No result of a GPU has been committed yet.\n"
    found = result("gpu")
    assert found["device"]["name"] != "cpu", "benchmarks/results/gpu.json is of a dry run; remove it"
    times = ("first run, ms", "steady, median", "p90", "TFLOP/s", "of the ceiling", "memory")
    kinds = [*dict.fromkeys(kind for row in found["profiles"] for kind in row.get("kinds_ms", ()))]
    parts = (
        (
            f"{found['device']['name']}, driver {found['device']['driver']}, torch {found['versions']['torch']}:",
            ("picture", "way", "made ready, s", *times),
            [(_size(row), row["way"], *_or_missing(row, _ready, 7)) for row in found["steps"]],
        ),
        (
            "The prefix, once a prompt:",
            ("tokens", "way", *times),
            [
                (str(row.get("prefix", "")), row.get("way", ""), *_or_missing(row, _times, 6))
                for row in (found["prefix"], *found["prefixes"])
            ],
        ),
        (
            "Where the milliseconds of a step go:",
            ("picture", "way", *kinds, "flash attention"),
            [
                (_size(row), row["way"], *_or_missing(row, lambda row: _kinds(row, kinds), len(kinds) + 1))
                for row in found["profiles"]
            ],
        ),
        (
            "Against the reference in fp32 on the same device:",
            ("checkpoint", "component", "way", "relative L2", "cosine"),
            [
                (row.get("checkpoint", ""), row.get("component", ""), row["way"], *_or_missing(row, _parity, 2))
                for row in found["parity"]
            ],
        ),
    )
    return "\n".join(f"{words}\n\n{markdown(head, rows)}" for words, head, rows in parts)


def _size(row: Mapping[str, Any]) -> str:
    return f"{row['pixels']}x{row['pixels']}" if "pixels" in row else ""


def _or_missing(
    row: Mapping[str, Any], cells: Callable[[Mapping[str, Any]], Sequence[str]], count: int
) -> Sequence[str]:
    """Return the `count` cells of a row, or the reason why it has no figures."""
    return (row["missing"].replace("|", "\\|"), *[""] * (count - 1)) if "missing" in row else cells(row)


def _ready(row: Mapping[str, Any]) -> Sequence[str]:
    return (f"{row['ready_s']:.1f}", *_times(row))


def _times(row: Mapping[str, Any]) -> Sequence[str]:
    peak = row["peak_bytes"]
    return (
        *(f"{row[key]:.1f}" for key in ("first_ms", "median_ms", "p90_ms", "tflop_per_s")),
        "" if row["of_ceiling"] is None else f"{row['of_ceiling']:.0%}",
        "" if peak is None else f"{peak / 1e9:.1f} GB",
    )


def _kinds(row: Mapping[str, Any], kinds: Sequence[str]) -> Sequence[str]:
    return (*(f"{row['kinds_ms'].get(kind, 0.0):.1f}" for kind in kinds), "yes" if row["flash"] else "no")


def _parity(row: Mapping[str, Any]) -> Sequence[str]:
    return f"{row['relative_l2']:.2%}", f"{row['cosine']:.5f}"
