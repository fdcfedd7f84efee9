"""The table that `qwen-image verify --pictures` prints for a person."""

from __future__ import annotations

from collections.abc import Iterator

from qwen_image_engine.export.verify.pictures.distance import CEILING, Figures
from qwen_image_engine.export.verify.pictures.result import PictureComparison, Row
from qwen_image_engine.runtime.system.text import table

HEAD = (
    "of",
    "setting",
    "evaluations",
    "RGB",
    "worst",
    "alpha",
    "FLIP",
    "worst",
    "Euler as many: RGB",
    "FLIP",
    "gain",
    "accepted",
)
"""Columns of a row's cells. RGB, alpha and gain are in dB."""


def tables(found: PictureComparison) -> Iterator[str]:
    """Yield all lines: the solution, a table of each bundle, and pictures that could not be drawn."""
    solution = found.solution
    yield (
        f"solution: {solution.solver}, {solution.steps} steps ({solution.evaluations} evaluations), by the fp32 "
        f"reference; {len(found.cases)} requests{guidance(found)}"
    )
    for bundle in found.bundles:
        yield from ("", f"{bundle.bundle}: {bundle.target} {bundle.precision}, {bundle.engine} {bundle.engine_version}")
        rows = list(bundle.rows(found.cases))
        columns = [index for index in range(len(HEAD)) if index < len(HEAD) - 1 or any(row.judged for row in rows)]
        lines = [[text[index] for index in columns] for text in (HEAD, *map(cells, rows))]
        yield from table(lines, right=range(2, len(columns)))
        for row in rows:
            for picture in row.own:
                if picture.distance is None:
                    yield f"✗ {row.found.setting}, {picture.case}: no picture, {picture.missing}"
    yield f"PSNR of colours over white and of alpha in dB ({CEILING:g} is equal) and FLIP (0 is), means over requests"


def guidance(found: PictureComparison) -> str:
    """Return the words about guidance; "" without guidance."""
    return "" if found.guidance == 1 else f", guidance {found.guidance:g} with two evaluations for one"


def cells(row: Row) -> list[str]:
    """Return the texts of a row, one for each column of `HEAD`."""
    setting, own, other = row.found.setting, row.figures, row.baseline
    is_baseline = setting == setting.baseline
    judged = "; ".join(f"{score.rate:.1%} of {score.tried} {kind}" for kind, score in row.judged.items())
    return [
        row.kind,
        str(setting),
        str(setting.evaluations),
        *_texts(own),
        "" if is_baseline or other is None else f"{other.psnr_rgb:.1f}",
        "" if is_baseline or other is None else f"{other.flip:.4f}",
        "" if is_baseline or row.gain is None else f"{row.gain:+.1f}",
        judged,
    ]


def _texts(found: Figures | None) -> list[str]:
    if found is None:
        return ["none", "", "", "", ""]
    return [
        f"{found.psnr_rgb:.1f}",
        f"{found.psnr_rgb_worst:.1f}",
        f"{found.psnr_alpha:.1f}",
        f"{found.flip:.4f}",
        f"{found.flip_worst:.4f}",
    ]
