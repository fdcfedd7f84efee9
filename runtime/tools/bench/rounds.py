"""The rounds: every way draws every case in turn, in alternating order, so that whatever changes meanwhile hits all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qwen_image_engine.runtime.tools.bench.case import Case
from qwen_image_engine.runtime.tools.bench.contender import Drawn, Way
from qwen_image_engine.runtime.tools.bench.runs import CaseRuns, WayRuns


def run_rounds(
    ways: Sequence[Way],
    cases: Sequence[Case],
    rounds: int,
    advance: Callable[[], None] = lambda: None,
    *,
    pictures: bool = False,
) -> tuple[CaseRuns, ...]:
    """Measure every way on every case.

    Every draw of a case has a number that no other draw of any case has, so that nobody has seen its prompt or its
    reference images: `QwenImage` and the reference keep what they have encoded, and diffusers does not.

    Round 0 warms up and stands apart. Of those that count the odd ones run A, B, C and the even ones C, B, A: a machine
    that slows down steadily adds as much to each. Memory is watched in round 0 and in one more after the last, for
    allocators hold more after a while; neither's seconds count.

    Args:
        ways: loaded.
        cases: one after the other.
        rounds: that count, at least 1.
        advance: called after each draw, (rounds + 2) * ways * cases times.
        pictures: whether to keep the one after the last round, of the same seed for every way.

    Raises:
        QwenImageError: a draw failed.
    """
    return tuple(
        _case(ways, case, range(index * (rounds + 2), (index + 1) * (rounds + 2)), advance, pictures)
        for index, case in enumerate(cases)
    )


def _case(ways: Sequence[Way], case: Case, numbers: range, advance: Callable[[], None], pictures: bool) -> CaseRuns:
    """One case; `numbers` of its draws, one for each round."""
    warm_ups = []
    for way in ways:
        warm_ups.append(way.draw(case, numbers[0], watched=True))
        advance()
    drawn: list[list[Drawn]] = [[] for _ in ways]
    for turn, number in enumerate(numbers[1:-1]):
        order = range(len(ways)) if turn % 2 == 0 else reversed(range(len(ways)))
        for index in order:
            drawn[index].append(ways[index].draw(case, number, watched=False))
            advance()
    peaks, kept = [], []
    for way, warm_up in zip(ways, warm_ups, strict=True):
        last = way.draw(case, numbers[-1], watched=True, picture=pictures)
        kept.append(last.picture)
        merged = {stage: peak.peak(warm_up.peaks.get(stage)) for stage, peak in last.peaks.items()}
        peaks.append({**warm_up.peaks, **merged})
        advance()
    runs = [
        WayRuns(
            way=way.facts.name,
            role=way.facts.role,
            warm_up=warm_up.sample,
            peaks=found,
            rounds=tuple(item.sample for item in taken),
            waiting=tuple(item.waiting for item in taken),
            picture=picture,
        )
        for way, warm_up, found, taken, picture in zip(ways, warm_ups, peaks, drawn, kept, strict=True)
    ]
    return CaseRuns(case, tuple(runs))
