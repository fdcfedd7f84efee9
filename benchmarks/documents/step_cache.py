"""Table of docs/fewer-steps.md on the step cache: the best of solvers and of caches at equal evaluations."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.documents.tables import markdown, result
from qwen_image_engine.runtime.sampling.solver import SOLVERS

EVALUATIONS = (10, 12, 14, 16, 20)
"""Evaluations that the best setting of each column may spend at most."""

Row = Mapping[str, Any]


def _euler(row: Row) -> bool:
    return row["solver"] == "euler"


_CACHES: Mapping[str, Callable[[Row], bool]] = {
    "cache on Euler, reused": lambda row: _euler(row) and row["cache"]["order"] == 0,
    "cache on Euler, extrapolated": lambda row: _euler(row) and row["cache"]["order"] == 1,
    "cache on another solver": lambda row: not _euler(row),
}


def step_cache() -> str:
    """Return the table of the best solver and the best caches, with a row for each transformer and evaluations."""
    rows = []
    for subject in result("step-cache")["subjects"]:
        measure = "rgb_solution" if subject["trained"] else "latents_solution"
        solvers, caches = (
            [row for row in subject["rows"] if (row["cache"] is None) == alone] for alone in (True, False)
        )
        for evaluations in EVALUATIONS:
            solver = _best(solvers, evaluations, measure)
            cached = {
                name: _best([row for row in caches if has(row)], evaluations, measure) for name, has in _CACHES.items()
            }
            euler = _best([row for row in solvers if _euler(row)], evaluations, measure)
            cells = (_cell(found, measure) for found in (euler, solver, *cached.values()))
            rows.append((subject["name"], str(evaluations), *cells, _difference(solver, cached.values(), measure)))
    return markdown(("transformer", "evaluations", "Euler", "best solver", *_CACHES, "best cache against it"), rows)


def _best(rows: Sequence[Row], evaluations: int, measure: str) -> Row | None:
    """Return the row with the most decibels of those with at most so many evaluations; None if there is none."""
    within = [row for row in rows if row["evaluations"] <= evaluations]
    return max(within, key=lambda row: row["decibels"][measure], default=None)


def _cell(row: Row | None, measure: str) -> str:
    if row is None:
        return ""
    words = f"{SOLVERS[row['solver']].label} {row['steps']}"
    if row["cache"] is not None:
        threshold = row["cache"]["threshold"]
        rule = f"{row['cache']['most_skips']} skipped" if threshold is None else f"below {threshold:g}"
        words = f"{words} steps, F {row['cache']['head']}, {rule}"
    return f"{row['decibels'][measure]:.1f} dB ({words})"


def _difference(solver: Row | None, caches: Iterable[Row | None], measure: str) -> str:
    best = max(filter(None, caches), key=lambda row: row["decibels"][measure], default=None)
    if solver is None or best is None:
        return ""
    pairs = list(zip(best["by_request"][measure], solver["by_request"][measure], strict=True))
    better = sum(cached > plain for cached, plain in pairs)
    change = best["decibels"][measure] - solver["decibels"][measure]
    return f"{change:+.1f} dB, better on {better} of {len(pairs)}"
