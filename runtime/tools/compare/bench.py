"""The comparison of two benchmarks: stages that became faster or slower, memory and files that grew or shrank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from qwen_image_engine.runtime.tools.bench.case import Case
from qwen_image_engine.runtime.tools.bench.confidence import COVERAGE, ratio_interval
from qwen_image_engine.runtime.tools.bench.result import Benchmark, ContenderInfo
from qwen_image_engine.runtime.tools.bench.runs import ContenderRuns
from qwen_image_engine.runtime.tools.bench.stages import COMPARED
from qwen_image_engine.runtime.tools.bench.verdict import (
    MARGIN,
    MIN_PAIRS,
    TOO_BUSY,
    Noise,
    RatioVerdict,
    judge,
    too_few,
)
from qwen_image_engine.runtime.tools.compare.result import Change, ChangedRow, Comparison

BYTES_MARGIN = 0.05
"""Relative error of measured peak memory. Bytes of files are exact, but the same margin applies to them."""

TEST = (
    f"each round is one sample; the median ratio of all pairs with its {COVERAGE:.0%} interval from the exact "
    f"distribution of Mann and Whitney's U, made wider on either side by the {MARGIN:.0%} that runs of one code differ "
    f"by, or by what a noisy machine can make; a difference is one where 1 lies outside; nothing is told of a way that "
    f"waited for a core for more than {TOO_BUSY:.0%} of the time; bytes differ beyond {BYTES_MARGIN:.0%}"
)


def compare_bench(before: Mapping[str, Any], after: Mapping[str, Any]) -> Comparison:
    """Compare two results of `bench --output` that match `schemas.FORMS`; see `compare`."""
    first, second = Benchmark.from_json(before), Benchmark.from_json(after)
    rows = (*_times(first, second), *_bytes(first, second))
    return Comparison("bench", TEST, rows, tuple(_notes(first, second)), tuple(_lost(first, second)))


def _times(first: Benchmark, second: Benchmark) -> Iterator[ChangedRow]:
    theirs = _runs(second)
    for (case, contender), own in _runs(first).items():
        other = theirs.get((case, contender))
        if other is None:
            continue
        for stage in COMPARED:
            before, after = own.seconds(stage), other.seconds(stage)
            if not before or not after:
                continue
            found = _judged(before, after, own.noise.worst(other.noise))
            at, bounds = found.interval, found.bounds
            yield ChangedRow(
                where=f"{case}, {contender}",
                what=stage,
                before=median(before),
                after=median(after),
                unit="s",
                ratio=None if at is None else at.median,
                low=None if bounds is None else bounds[0],
                high=None if bounds is None else bounds[1],
                change=found.verdict,
                reason=found.reason,
            )


def _judged(before: list[float], after: list[float], noise: Noise) -> RatioVerdict:
    fewest = min(len(before), len(after))
    return too_few(fewest) if fewest < MIN_PAIRS else judge(ratio_interval(before, after), noise, paired=False)


def _bytes(first: Benchmark, second: Benchmark) -> Iterator[ChangedRow]:
    theirs = {contender.name: contender for contender in second.contenders}
    drawn = _same_cases(first, second)
    for own in first.contenders:
        other = theirs.get(own.name)
        if other is None or own.missing or other.missing:
            continue
        for what, before, after in (
            *([("peak memory", own.peak_bytes, other.peak_bytes)] if drawn else []),
            ("disk", own.disk_bytes, other.disk_bytes),
        ):
            if before and after:
                ratio = before / after
                yield ChangedRow(own.name, what, before, after, "bytes", ratio, None, None, _size_change(ratio))


def _same_cases(first: Benchmark, second: Benchmark) -> bool:
    """Return whether peak memory of processes can be compared.

    The largest picture determines the peak, because allocators keep its memory.
    """
    return [case.case for case in first.cases] == [case.case for case in second.cases]


def _size_change(ratio: float) -> Change:
    if ratio > 1 + BYTES_MARGIN:
        return "smaller"
    return "larger" if ratio < 1 / (1 + BYTES_MARGIN) else "same"


def _runs(found: Benchmark) -> dict[tuple[Case, str], ContenderRuns]:
    return {(case.case, run.contender): run for case in found.cases for run in case.runs}


def _notes(first: Benchmark, second: Benchmark) -> Iterator[str]:
    for what, before, after in (
        ("processor", first.environment["machine"]["cpu"], second.environment["machine"]["cpu"]),
        ("cores", first.environment["machine"]["cores"], second.environment["machine"]["cores"]),
        ("threads", first.settings.threads, second.settings.threads),
        ("memory policy", first.settings.memory, second.settings.memory),
        ("kernel specialization", first.settings.kernel_specialization, second.settings.kernel_specialization),
        ("precision", first.bundle["precision"], second.bundle["precision"]),
        ("checkpoint", first.bundle["checkpoint"], second.bundle["checkpoint"]),
        *((f"{name} version", before, after) for name, before, after in _versions(first.contenders, second.contenders)),
    ):
        if before != after:
            yield f"{what}: {before} before, {after} now"
    if not _same_cases(first, second):
        yield "peak memory is not compared: the two drew other cases, and the largest of them makes a process's peak"
    own, other = _runs(first), _runs(second)
    yield from (f"not in the first: {case}, {contender}" for case, contender in other if (case, contender) not in own)
    for where, run in own.items():
        if where in other:
            stages = [stage for stage in COMPARED if run.seconds(stage) and not other[where].seconds(stage)]
            yield from (f"not in the second: {where[0]}, {where[1]}: {stage}" for stage in stages)


def _lost(first: Benchmark, second: Benchmark) -> Iterator[str]:
    """Yield the cases of contenders that are missing in the second result, with the reason if the result has one."""
    own, other = _runs(first), _runs(second)
    reasons = {contender.name: f" ({contender.missing})" for contender in second.contenders if contender.missing}
    yield from (
        f"{case}, {contender}{reasons.get(contender, '')}" for case, contender in own if (case, contender) not in other
    )


def _versions(first: tuple[ContenderInfo, ...], second: tuple[ContenderInfo, ...]) -> Iterator[tuple[str, str, str]]:
    theirs = {contender.name: contender.version for contender in second if not contender.missing}
    return (
        (contender.name, contender.version, theirs[contender.name])
        for contender in first
        if not contender.missing and contender.name in theirs
    )
