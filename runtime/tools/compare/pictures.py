"""The comparison of two results of `verify --pictures`: settings that are closer to the solution, or farther."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwen_image_engine.runtime.sampling.spacing import levels_text
from qwen_image_engine.runtime.tools.compare.result import Change, ChangedRow, Comparison

DB_MARGIN = 1.0
"""Loss of PSNR above which a setting is worse [dB], a growth of the error by an eighth. Two runs of one bundle on one
engine differ only by the order of sums among threads, which moves a few pixels by one byte."""

DB_ENOUGH = 70.0
"""PSNR above which pictures are as good as equal [dB]: one byte in 150 differs, by one."""

FLIP_MARGIN, FLIP_ENOUGH = 0.125, 5e-4
"""Relative growth of FLIP above which a setting is worse, and FLIP below which pictures are as good as equal."""

RATE_MARGIN = 0.01
"""Loss of the share of pictures that the judge accepts above which a setting is worse."""

TEST = (
    "pictures are no samples: the same bundle draws the same ones; a row is worse where its PSNR fell by more than "
    f"{DB_MARGIN:g} dB below {DB_ENOUGH:g} dB, its FLIP grew by more than {FLIP_MARGIN:.1%} above {FLIP_ENOUGH:g}, the "
    f"judge accepts fewer of the pictures by more than {RATE_MARGIN:.0%} of them, or a picture could be drawn before "
    "and cannot now"
)


def compare_pictures(before: Mapping[str, Any], after: Mapping[str, Any]) -> Comparison:
    """Compare two results of `verify --pictures --output` that match `schemas.FORMS`; see `compare`.

    Bundles are paired in the order in which they were named, rows by kind of request and setting.
    """
    own, other = before["bundles"], after["bundles"]
    if len(own) != len(other):
        return Comparison("pictures", TEST, (), (f"{len(own)} bundles before, {len(other)} now",))
    rows: list[ChangedRow] = []
    notes, lost = list(_notes(before, after)), []
    for index, (first, second) in enumerate(zip(own, other, strict=True)):
        prefix = f"bundle {index + 1}, " if len(own) > 1 else ""
        for key in ("precision", "engine", "engine_version"):
            if first[key] != second[key]:
                notes.append(f"{prefix}{key}: {first[key]} before, {second[key]} now")
        mine, theirs = _rows(first), _rows(second)
        for where, row in mine.items():
            if where in theirs:
                rows += _changes(prefix + where, row, theirs[where])
            elif row["asked"]:
                lost.append(prefix + where)
        notes += [f"{prefix}not in the first: {where}" for where in theirs if where not in mine]
    return Comparison("pictures", TEST, tuple(rows), tuple(notes), tuple(lost))


def _rows(bundle: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return a bundle's rows by kind of request and setting."""
    found = {}
    for row in bundle["rows"]:
        levels = row["sigmas"]
        words = [] if levels is None else [levels_text(levels)]
        found[" ".join([f"{row['kind']},", row["solver"], str(row["steps"]), *words])] = row
    return found


def _changes(where: str, own: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[ChangedRow]:
    before, after = own["figures"], other["figures"]
    if before is None or after is None:
        if before is not after:
            change: Change = "worse" if after is None else "closer"
            yield ChangedRow(
                where, "drawn", float(after is None), float(before is None), "passed", None, None, None, change
            )
        return
    for name, what in (("psnr_rgb", "RGB"), ("psnr_alpha", "alpha")):
        first, second = before[name], after[name]
        ratio = 10 ** ((second - first) / 20)
        yield ChangedRow(where, what, first, second, "dB", ratio, None, None, _decibels(first, second))
    first, second = before["flip"], after["flip"]
    ratio = first / second if first and second else None
    yield ChangedRow(where, "FLIP", first, second, "FLIP", ratio, None, None, _flip(first, second))
    scores = {score["kind"]: score for score in other["judged"]}
    for score in own["judged"]:
        theirs = scores.get(score["kind"])
        if theirs is not None and theirs["tried"] == score["tried"]:
            first, second = score["rate"], theirs["rate"]
            near = round(abs(second - first), 9) <= RATE_MARGIN
            change = "same" if near else "worse" if second < first else "closer"
            yield ChangedRow(where, f"judge, {score['kind']}", first, second, "accepted", None, None, None, change)


def _decibels(before: float, after: float) -> Change:
    if abs(min(after, DB_ENOUGH) - min(before, DB_ENOUGH)) <= DB_MARGIN:
        return "same"
    return "worse" if after < before else "closer"


def _flip(before: float, after: float) -> Change:
    low, high = sorted((max(before, FLIP_ENOUGH), max(after, FLIP_ENOUGH)))
    if high <= low * (1 + FLIP_MARGIN):
        return "same"
    return "worse" if after > before else "closer"


def _notes(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    for key in ("checkpoint", "config_sha256", "weights_sha256", "guidance"):
        if first[key] != second[key]:
            yield f"{key}: {first[key]} before, {second[key]} now"
    own, other = (f"{found['solution']['solver']} {found['solution']['steps']}" for found in (first, second))
    if own != other:
        yield f"solution: {own} before, {other} now"
    if first["cases"] != second["cases"]:
        yield "the two drew other requests, so that their figures differ for that reason too"
