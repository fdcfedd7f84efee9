"""Tables of docs/fewer-steps.md on solvers: distances by evaluations, and what the judge of `shapes` accepts."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.documents.tables import markdown, result
from qwen_image_engine.runtime.sampling.solver import SOLVERS

Row = Mapping[str, Any]

_OTHERS = {"guidance": "prompts, fp32, guidance 3", "int8": "prompts, int8"}
"""Parts of solvers.json with fewer rows, after fp32's two kinds."""


def solvers() -> str:
    """Return the table of PSNR over white by evaluations, with a column for each solver."""
    parts = result("solvers")["parts"]
    rows = []
    for kind in ("prompts", "edits"):
        rows += _rows(f"{kind}, fp32", [row for row in parts["fp32"]["rows"] if row["kind"] == kind])
    for part, name in _OTHERS.items():
        rows += _rows(name, parts[part]["rows"]) if part in parts else []
    return markdown(("requests", "evaluations", *(row.label for row in SOLVERS.values())), rows)


def _rows(name: str, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    counts = sorted({row["evaluations"] for row in rows if row["solver"] == "ab2"})
    return [(name, str(count), *(_cell(rows, solver, count) for solver in SOLVERS)) for count in counts]


def _cell(rows: Sequence[Row], solver: str, count: int) -> str:
    """Return PSNR and FLIP of a solver with `count` evaluations, or of Heun's with one less, which its steps allow."""
    for evaluations in (count, count - 1):
        for row in rows:
            if (row["solver"], row["evaluations"]) == (solver, evaluations):
                figures = row["figures"]
                fewer = "" if evaluations == count else f" ({evaluations})"
                return f"{figures['psnr_rgb']:.1f} dB, {figures['flip']:.4f}{fewer}"
    return ""


def judged() -> str:
    """Return the table of held-out prompts and edits that the judge accepts, by solver and steps."""
    found = result("fewer-steps")["results"]
    rows = []
    for row in found:
        scores = (
            f"{row[kind]['rate']:.1%} ({', '.join(map(str, row[kind]['fulfilled']))})" for kind in ("prompts", "edits")
        )
        rows.append((row["precision"], f"{SOLVERS[row['solver']].label} {row['steps']}", *scores))
    return markdown(("precision", "setting", "prompts (of 200 a seed)", "edits (of 150 a seed)"), rows)
