"""The comparison of two verifications: components that are closer to the reference than before, or farther from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwen_image_engine.runtime.tools.compare.measures import RELATIVE_L2, Measure, compared_measures
from qwen_image_engine.runtime.tools.compare.result import Change, ChangedRow, Comparison

MARGIN = 0.1
"""Relative growth of an error above which a component is worse. Two runs of one bundle on one engine differ only by the
order of sums among threads, which changes a quantisation error by far less than a tenth. A wrong scale or rotation
multiplies the error."""


def compare_verify(before: Mapping[str, Any], after: Mapping[str, Any]) -> Comparison:
    """Compare two results of `verify --output` that match `schemas.FORMS`; see `compare`.

    Bundles are paired in the order in which they were named.
    """
    own, other = before.get("bundles", [before]), after.get("bundles", [after])
    if len(own) != len(other):
        return Comparison("verify", _test(), (), (f"{len(own)} bundles before, {len(other)} now",))
    rows: list[ChangedRow] = []
    notes: list[str] = []
    lost: list[str] = []
    for index, (first, second) in enumerate(zip(own, other, strict=True)):
        prefix = f"bundle {index + 1}, " if len(own) > 1 else ""
        rows += [*_rows(prefix, first, second), *_passed(prefix, first, second)]
        notes += _notes(prefix, first, second)
        theirs = _cases(second)
        lost += [f"{prefix}{component}, {case}" for component, case in _cases(first) if (component, case) not in theirs]
    return Comparison("verify", _test(), tuple(rows), tuple(notes), tuple(lost))


def _test() -> str:
    """Return the description of the test that decides."""
    grown = " or ".join(
        f"its {measure.heading} grew by more than {MARGIN:.0%} and is above {measure.rounding:.0e}, where rounding ends"
        for measure in compared_measures()
    )
    return (
        f"errors are no samples: the same bundle has the same ones; a row is worse where {grown}, or where it passed "
        "before and fails now, the verdict on the whole bundle and limits of --fail-on included"
    )


def _rows(prefix: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[ChangedRow]:
    theirs = _cases(second)
    for (component, case), own in _cases(first).items():
        other = theirs.get((component, case))
        if other is None:
            continue
        for measure in compared_measures():
            if measure.name not in own or measure.name not in other:
                continue  # a document that is older than the measure
            before, after = own[measure.name], other[measure.name]
            ratio = before / after if before and after else None
            change = _change(measure, own, other)
            what = case if measure is RELATIVE_L2 else f"{case}, {measure.heading}"
            yield ChangedRow(f"{prefix}{component}", what, before, after, measure.heading, ratio, None, None, change)


def _passed(prefix: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[ChangedRow]:
    """Yield the limits of `--fail-on` and the verdict on the bundle that both results have and at least one failed."""
    before, after = (
        {
            **{("--fail-on", f"{limit['row']}={limit['relative_l2']:g}"): limit["passed"] for limit in each["limits"]},
            ("the whole", "limits included"): each["passed"],
        }
        for each in ({"limits": [], **first}, {"limits": [], **second})
    )
    for (where, what), own in before.items():
        other = after.get((where, what))
        if other is None or (own and other):
            continue
        change: Change = "same" if own == other else "closer" if other else "worse"
        yield ChangedRow(f"{prefix}{where}", what, float(own), float(other), "passed", None, None, None, change)


def _change(measure: Measure, own: Mapping[str, Any], other: Mapping[str, Any]) -> Change:
    assert measure.rounding is not None
    before, after = own[measure.name], other[measure.name]
    if own["passed"] != other["passed"]:
        return "closer" if other["passed"] else "worse"
    if before is None or after is None:  # not finite
        return "same" if before is after else "closer" if before is None else "worse"
    low, high = sorted((max(before, measure.rounding), max(after, measure.rounding)))
    if high <= low * (1 + MARGIN):
        return "same"
    return "worse" if after > before else "closer"


def _cases(found: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {
        (str(component["component"]), str(case["case"])): case
        for component in found["components"]
        for case in component["cases"]
    }


def _notes(prefix: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    for key in ("checkpoint", "config_sha256", "weights_sha256", "precision", "engine", "engine_version"):
        if first[key] != second[key]:
            yield f"{prefix}{key}: {first[key]} before, {second[key]} now"
    own, other = _cases(first), _cases(second)
    new = [where for where in other if where not in own]
    yield from (f"{prefix}not in the first: {component}, {case}" for component, case in new)
