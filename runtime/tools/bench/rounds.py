"""The rounds of a benchmark: contenders draw every case in turn, so that changes of the machine affect all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qwen_image_engine.runtime.tools.bench.case import Case
from qwen_image_engine.runtime.tools.bench.contender import Contender, RunSample
from qwen_image_engine.runtime.tools.bench.runs import CaseRuns, ContenderRuns


def run_rounds(
    contenders: Sequence[Contender],
    cases: Sequence[Case],
    rounds: int,
    advance: Callable[[], None] = lambda: None,
    *,
    pictures: bool = False,
) -> tuple[CaseRuns, ...]:
    """Measure every contender on every case.

    Every draw has a number that no other draw of any case has, so no contender has seen its prompt or reference images
    before: `QwenImage` and the reference cache encoded inputs, and diffusers does not.

    Round 0 warms up and does not count. Of the counted rounds, odd ones run A, B, C and even ones run C, B, A. A
    machine that slows down steadily thus adds the same time to each contender. Memory is read in round 0 and in one
    more round after the last, because allocators hold more memory after a while. The seconds of these two rounds do
    not count.

    Args:
        contenders: loaded contenders.
        cases: cases to run one after the other.
        rounds: number of counted rounds, at least 1.
        advance: called after each draw, (rounds + 2) * contenders * cases times.
        pictures: whether to keep the picture of the round after the last, with the same seed for every contender.

    Raises:
        QwenImageError: a draw failed.
    """
    return tuple(
        _case(contenders, case, range(index * (rounds + 2), (index + 1) * (rounds + 2)), advance, pictures)
        for index, case in enumerate(cases)
    )


def _case(
    contenders: Sequence[Contender], case: Case, numbers: range, advance: Callable[[], None], pictures: bool
) -> CaseRuns:
    """Measure every contender on one case. `numbers` has the number of each draw, one for each round."""
    warm_ups = []
    for contender in contenders:
        warm_ups.append(contender.draw(case, numbers[0], watched=True))
        advance()
    drawn: list[list[RunSample]] = [[] for _ in contenders]
    for turn, number in enumerate(numbers[1:-1]):
        order = range(len(contenders)) if turn % 2 == 0 else reversed(range(len(contenders)))
        for index in order:
            drawn[index].append(contenders[index].draw(case, number, watched=False))
            advance()
    peaks, kept = [], []
    for contender, warm_up in zip(contenders, warm_ups, strict=True):
        last = contender.draw(case, numbers[-1], watched=True, picture=pictures)
        kept.append(last.picture)
        merged = {stage: peak.peak(warm_up.peaks.get(stage)) for stage, peak in last.peaks.items()}
        peaks.append({**warm_up.peaks, **merged})
        advance()
    runs = [
        ContenderRuns(
            contender=contender.facts.name,
            role=contender.facts.role,
            warm_up=warm_up.sample,
            peaks=found,
            rounds=tuple(item.sample for item in taken),
            waiting=tuple(item.waiting for item in taken),
            picture=picture,
        )
        for contender, warm_up, found, taken, picture in zip(contenders, warm_ups, peaks, drawn, kept, strict=True)
    ]
    return CaseRuns(case, tuple(runs))
