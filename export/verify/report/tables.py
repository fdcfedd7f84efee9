"""What `qwen-image verify` prints for a person: tables of a bundle, one table of several, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from qwen_image_engine.export.verify.result import verdict_text
from qwen_image_engine.runtime.system.text import table

if TYPE_CHECKING:
    from qwen_image_engine.export.verify.layers import Layers
    from qwen_image_engine.export.verify.result import Row, Verification


def tables(bundles: Sequence[Verification]) -> Iterator[str]:
    """All lines: components, steps, layers and judge where they were asked for, limits, and the verdict of each."""
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
        yield verdict_text(bundle) + _of(bundle, bundles)


def _of(bundle: Verification, bundles: Sequence[Verification]) -> str:
    return f": {bundle.bundle}" if len(bundles) > 1 else ""


def _mark(passed: bool) -> str:
    return "✓" if passed else "✗"


def _components(bundle: Verification) -> list[str]:
    # A quantised bundle's steps are judged by their mean; the worst stands beside it.
    rows = [("", "component", "case", "relative L2", "threshold", "worst step", "cosine", "max abs")]
    rows += [
        (
            _mark(row.passed),
            row.component,
            row.case,
            f"{row.judged.relative_l2:.1e}",
            f"{row.threshold.relative_l2:.0e}",
            f"{row.worst.relative_l2:.1e}" if len(row.runs) > 1 else "",
            f"{row.judged.cosine:.9f}",
            f"{row.judged.max_abs:.1e}",
        )
        for row in bundle.rows
    ]
    return table(rows, right=(3, 4, 5, 6, 7))


def _side_by_side(bundles: Sequence[Verification]) -> list[str]:
    """Relative L2 as thresholds are for it, a column a bundle; empty where a bundle cannot do the case."""
    found: list[dict[tuple[str, str], Row]] = [
        {(row.component, row.case): row for row in item.rows} for item in bundles
    ]
    names = dict.fromkeys(key for rows in found for key in rows)
    head = ("component", "case", *(item.bundle for item in bundles))
    about = ("", "", *(f"{item.target} {item.precision}" for item in bundles))
    body = [
        (
            *key,
            *(f"{_mark(rows[key].passed)} {rows[key].judged.relative_l2:.1e}" if key in rows else "" for rows in found),
        )
        for key in names
    ]
    return table([head, about, *body], right=tuple(range(2, len(head))))


def _by_name(bundle: Verification) -> dict[tuple[str, str], Row]:
    return {(row.component, row.case): row for row in bundle.rows}


def _steps(bundle: Verification) -> list[str]:
    """Cases differ in their sigmas (the schedule depends on the size), so a step has a range of them."""
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
    rows = [("layer", "relative L2", "growth", "cosine", "max abs")]
    rows += [
        (
            layer.name,
            f"{layer.worst.relative_l2:.1e}",
            f"{layer.growth:.1f}x" if layer.growth > 1 else "",
            f"{layer.worst.cosine:.9f}",
            f"{layer.worst.max_abs:.1e}",
        )
        for layer in layers.layers
    ]
    lines = table(rows, right=(1, 2, 3, 4))
    if layers.scaled:
        lines.append(f"{len(layers.scaled)} linears have no row: their channels are scaled for the linear after them")
    return lines


def _judged(bundles: Sequence[Verification]) -> list[str]:
    kinds = dict.fromkeys(item.kind for bundle in bundles for item in bundle.judged)
    rates = [{item.kind: item for item in bundle.judged} for bundle in bundles]
    rows = [("kind", "tried", "reference", *(bundle.bundle for bundle in bundles))]
    for kind in kinds:
        reference = next(found[kind].reference for found in rates if kind in found)
        own = (f"{found[kind].engine.rate:.1%}" if kind in found else "" for found in rates)
        rows.append((kind, str(reference.tried), f"{reference.rate:.1%}", *own))
    return table(rows, right=tuple(range(1, len(rows[0]))))
