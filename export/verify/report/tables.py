"""The tables that `qwen-image verify` prints for a person: tables of a bundle, one table of several, the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from qwen_image_engine.export.verify.result import side_by_side, verdict_text
from qwen_image_engine.runtime.system.text import table

if TYPE_CHECKING:
    from qwen_image_engine.export.verify.layers import Layers
    from qwen_image_engine.export.verify.result import Verification

_PAGE_ALONE = ("of it", "least")
"""Columns that only a page has room for."""


def tables(bundles: Sequence[Verification]) -> Iterator[str]:
    """Yield all lines: components, steps, layers, judge, limits, and the verdict on each bundle.

    Layers and judge appear only if requested.
    """
    for bundle in bundles:
        yield f"✓ {bundle.files} files are what their hashes say{_of(bundle, bundles)}"
    yield from _components(bundles[0]) if len(bundles) == 1 else _side_by_side(bundles)
    for bundle in bundles:
        yield from ("", f"by step, the worst of all cases{_of(bundle, bundles)}", *_steps(bundle))
    for bundle in bundles:
        if bundle.layers is not None:
            yield from ("", f"by layer of {bundle.layers.component}{_of(bundle, bundles)}", *_layers(bundle.layers))
    if any(bundle.judged for bundle in bundles):
        yield from ("", "held-out prompts fulfilled, by the judge", *_judged(bundles))
    yield ""
    for bundle in bundles:
        for limit in bundle.limits:
            mark, error = _mark(bundle.holds(limit)), bundle.judged_error(limit.row)
            yield f"{mark} --fail-on {limit.row}={limit.relative_l2:g}: {error:.1e}{_of(bundle, bundles)}"
        if bundle.not_recorded is not None:
            yield f"the result is not recorded in the bundle: {bundle.not_recorded}"
        yield verdict_text(bundle) + _of(bundle, bundles)


def _of(bundle: Verification, bundles: Sequence[Verification]) -> str:
    return f": {bundle.bundle}" if len(bundles) > 1 else ""


def _mark(passed: bool) -> str:
    return "✓" if passed else "✗"


def _components(bundle: Verification) -> list[str]:
    columns = [name for name in bundle.rows[0].cells() if name not in _PAGE_ALONE]
    rows = [(_mark(row.passed), *map(row.cells().__getitem__, columns)) for row in bundle.rows]
    return table([("", *columns), *rows], right=range(3, len(columns) + 1))


def _side_by_side(bundles: Sequence[Verification]) -> list[str]:
    """Return the relative L2 that thresholds are for, a column for each bundle.

    A cell is empty if a bundle cannot do the case.
    """
    head = ("component", "case", *(item.bundle for item in bundles))
    about = ("", "", *(f"{item.target} {item.precision}" for item in bundles))
    body = [
        (*key, *("" if row is None else f"{_mark(row.passed)} {row.cells()['relative L2']}" for row in rows))
        for key, rows in side_by_side(bundles).items()
    ]
    return table([head, about, *body], right=tuple(range(2, len(head))))


def _steps(bundle: Verification) -> list[str]:
    """Return the table of steps.

    Cases differ in their sigmas, because the schedule depends on the size. So a step has a range of sigmas.
    """
    from qwen_image_engine.export.thresholds import TEACHER_FORCED

    forced = [row for row in bundle.rows if row.component == TEACHER_FORCED]
    rows = [("step", "sigma", "teacher-forced", "free-running", "control")]
    for index in range(max(len(row.runs) for row in forced)):
        sigmas = [row.sigmas[index] for row in forced if index < len(row.sigmas)]
        own = [item for item in bundle.free_running if index < len(item.engine)]
        rows.append(
            (
                str(index + 1),
                "-".join(dict.fromkeys(f"{sigma:.3f}" for sigma in (min(sigmas), max(sigmas)))),
                f"{max(row.runs[index].relative_l2 for row in forced if index < len(row.runs)):.1e}",
                f"{max(item.engine[index] for item in own):.1e}",
                f"{max(item.control[index] for item in own):.1e}",
            )
        )
    return table(rows, right=(0, 1, 2, 3, 4))


def _layers(layers: Layers) -> list[str]:
    cells = [layer.cells() for layer in layers.layers]
    lines = table([tuple(cells[0]), *(tuple(row.values()) for row in cells)], right=range(1, len(cells[0])))
    return [*lines, layers.note] if layers.note else lines


def _judged(bundles: Sequence[Verification]) -> list[str]:
    kinds = dict.fromkeys(item.kind for bundle in bundles for item in bundle.judged)
    rates = [{item.kind: item for item in bundle.judged} for bundle in bundles]
    rows = [("kind", "tried", "reference", *(bundle.bundle for bundle in bundles))]
    for kind in kinds:
        reference = next(found[kind].reference for found in rates if kind in found)
        own = (f"{found[kind].engine.rate:.1%}" if kind in found else "" for found in rates)
        rows.append((kind, str(reference.tried), f"{reference.rate:.1%}", *own))
    return table(rows, right=tuple(range(1, len(rows[0]))))
