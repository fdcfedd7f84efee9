"""The verdicts at the top of a benchmark's page: one for each pair of contenders, whatever the number of cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qwen_image_engine.runtime.tools.bench.result import Benchmark
from qwen_image_engine.runtime.tools.bench.runs import CaseRuns, Ratio
from qwen_image_engine.runtime.tools.bench.stages import STEADY_STEP
from qwen_image_engine.runtime.tools.report.bench_case import ratio_text, seconds_text
from qwen_image_engine.runtime.tools.report.html import Html, tag
from qwen_image_engine.runtime.tools.report.sections import listed, more, verdict

MOST_PAIRS = 4
"""Largest number of unfolded verdicts. More of them would push the first plot far down the page."""

Found = tuple[CaseRuns, Ratio]


def verdicts(found: Benchmark) -> Iterator[Html]:
    """Yield a box for each decided pair of engine and baseline, one for undecided ratios, and one for the noise.

    Without any ratio, a box with the medians takes the place of the verdicts.
    """
    totals = [(case, ratio) for case in found.cases for ratio in case.ratios() if ratio.stage == "total"]
    decided = [item for item in totals if item[1].judged.verdict != "unclear"]
    boxes = [
        _pair([item for item in decided if (item[1].engine, item[1].baseline) == pair], len(found.cases))
        for pair in dict.fromkeys((ratio.engine, ratio.baseline) for _, ratio in decided)
    ]
    yield from boxes[:MOST_PAIRS]
    if len(boxes) > MOST_PAIRS:
        yield more(f"{len(boxes) - MOST_PAIRS} more pairs of ways", boxes[MOST_PAIRS:])
    unclear = [item for item in totals if item[1].judged.verdict == "unclear"]
    if unclear:
        yield _unclear(unclear, len(totals))
    if not totals:
        yield _alone(found)
    yield _noise(found)


def _pair(items: Sequence[Found], cases: int) -> Html:
    kinds = {ratio.judged.verdict for _, ratio in items}
    mark = "good" if "slower" not in kinds else "bad" if kinds == {"slower"} else "unclear"
    first_case, first = items[0]
    if len(items) == 1:
        where = "" if cases == 1 else f", {first_case.case}"
        return verdict(mark, f"{_headline(first)}{where}", *_details(first_case, first))
    told = []
    for kind, words in (("faster", "faster than"), ("slower", "slower than"), ("same", "as fast as")):
        medians = [at.median for _, ratio in items if ratio.judged.verdict == kind if (at := ratio.judged.interval)]
        if medians:
            told.append(
                f"{words} {first.baseline} in {len(medians)} of {cases} cases ({min(medians):.2f}x to "
                f"{max(medians):.2f}x)"
            )
    lines = [line for case, ratio in items for line in _details(case, ratio)]
    return verdict(mark, f"{first.engine} is {', '.join(told)}", more("Case by case", listed(lines)))


def _headline(ratio: Ratio) -> str:
    at = ratio.judged.interval
    factor = "" if at is None or ratio.judged.verdict == "same" else f"{at.median:.2f}x "
    return f"{ratio.engine} is {factor}as fast as {ratio.baseline}"


def _details(case: CaseRuns, total: Ratio) -> list[str]:
    same = [ratio for ratio in case.ratios() if (ratio.engine, ratio.baseline) == (total.engine, total.baseline)]
    steps = [f"A steady step: {ratio_text(ratio)}." for ratio in same if ratio.stage == STEADY_STEP]
    return [f"A whole picture, {case.case}: {ratio_text(total)}.", *steps]


def _unclear(items: Sequence[Found], of: int) -> Html:
    lines = [
        f"{ratio.engine} against {ratio.baseline}. {line}" for case, ratio in items for line in _details(case, ratio)
    ]
    if of == 1:
        _, ratio = items[0]
        return verdict("unclear", f"{ratio.engine} against {ratio.baseline}: too noisy or too little to tell", *lines)
    title = f"Too noisy or too little to tell in {len(items)} of {of} comparisons"
    return verdict("unclear", title, more("Which", listed(lines)))


def _alone(found: Benchmark) -> Html:
    lines = [
        f"{run.contender} draws {case.case} in {seconds_text(run.quantiles['total']['p50'])}"
        for case in found.cases
        for run in case.runs
    ]
    note = "Median of all rounds. No baseline was run beside it, so no ratio stands here."
    if len(lines) == 1:
        return verdict("unclear", lines[0], note)
    return verdict("unclear", f"{len(lines)} medians, and no ratio", note, more("Which", listed(lines)))


def _noise(found: Benchmark) -> Html:
    runs = [(case, run) for case in found.cases for run in case.runs]
    noisy = [(case, run) for case, run in runs if run.noise.noisy]
    if not noisy:
        told = any(run.noise.steadiness is not None for _, run in runs)
        quiet = "The machine was quiet by both measures." if told else "Nothing tells how noisy the machine was."
        return tag("p", quiet, class_="note")
    worst = noisy[0][1].noise
    for _, run in noisy[1:]:
        worst = worst.worst(run.noise)
    title = f"Noisy in {len(noisy)} of {len(runs)} runs: nothing there is called the same"
    lines = [f"{run.contender}, {case.case}: {run.noise.describe()}" for case, run in noisy]
    if len(lines) == 1:
        return verdict("unclear", title, lines[0])
    return verdict("unclear", title, f"At worst {worst.describe()}.", more("Which", listed(lines)))
