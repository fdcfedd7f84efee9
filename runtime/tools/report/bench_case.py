"""The section of a benchmark's page for one case: times by stage, ratios, pictures."""

from __future__ import annotations

from collections.abc import Mapping

from qwen_image_engine.runtime.tools.bench.runs import CaseRuns, Ratio
from qwen_image_engine.runtime.tools.bench.stages import STAGES
from qwen_image_engine.runtime.tools.report.html import Content, Html, table, tag
from qwen_image_engine.runtime.tools.report.pictures import (
    colour_bar,
    difference_map,
    picture,
    picture_difference,
    scale_end,
    side_by_side,
)
from qwen_image_engine.runtime.tools.report.plot import Bar, Span, bars, span_limits, spans
from qwen_image_engine.runtime.tools.report.sections import legend, marked, more, plots, section

MOST_ROWS = 12
"""Largest number of rows of a table that is not folded."""

_MARKS = {"faster": "good", "slower": "bad"}


def case_section(case: CaseRuns, index: int, series: Mapping[str, int]) -> Html:
    """Return the section with times, ratios and pictures of a case.

    Args:
        case: the case's runs.
        index: number of the case in the page.
        series: numbers of colours by contender.
    """
    return section(str(case.case), _times(case, index, series), _ratios(case, index), _pictures(case))


def seconds_text(seconds: float) -> str:
    """Return seconds as a text, in milliseconds below one second."""
    return f"{1000 * seconds:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def ratio_text(ratio: Ratio) -> str:
    """Return the ratio with its interval and the verdict as a text."""
    at = ratio.judged.interval
    if at is None:
        return ratio.judged.reason
    interval = f"{at.median:.2f}x, {at.low:.2f} to {at.high:.2f} with {at.coverage:.1%} in {at.count} pairs"
    return f"{interval}: {ratio.judged.words}"


def _times(case: CaseRuns, index: int, series: Mapping[str, int]) -> list[Content]:
    stages = [stage for stage in STAGES if any(stage in run.quantiles for run in case.runs)]
    panels = []
    for stage in sorted(stages, key=lambda stage: stage != "total"):
        items = [
            Bar(run.contender, at["p50"], seconds_text(at["p50"]), series[run.contender], (at["p90"], at["p99"]))
            for run in case.runs
            for at in [run.quantiles.get(stage)]
            if at is not None
        ]
        panels.append(bars(f"time-{index}-{stage}", stage, items))
    caption = (
        "Bars end at the median (p50) of all samples, which stands above them; the thin line runs on to p90 and p99. "
        "Each panel has a scale of its own, from 0: compare bars within a panel."
    )
    head = ("way", "stage", "p50", "p90", "p99", "samples")
    rows = [[row[name] for name in head] for row in case.times(seconds_text)]
    warm = [
        (run.contender, stage, seconds_text(sum(seconds)))
        for run in case.runs
        for stage, seconds in run.warm_up.items()
    ]
    warm_table = table(("way", "stage", "seconds"), warm, numbers=(2,))
    return [
        tag("h3", "Time by stage"),
        plots(panels, caption),
        more("Figures", table(head, rows, numbers=(2, 3, 4, 5))),
        more("The first picture, which warms up and does not count (steps together)", warm_table),
    ]


def _ratios(case: CaseRuns, index: int) -> list[Content]:
    ratios = case.ratios()
    if not ratios:
        return []
    drawn: dict[str, tuple[list[Span], float]] = {}
    for engine, baseline in dict.fromkeys((ratio.engine, ratio.baseline) for ratio in ratios):
        own = [ratio for ratio in ratios if (ratio.engine, ratio.baseline) == (engine, baseline)]
        items = [
            Span(ratio.stage, at.low, at.median, at.high, _MARKS.get(ratio.judged.verdict, ""))
            for ratio in own
            for at in [ratio.judged.interval]
            if at is not None
        ]
        if items:
            drawn[f"{engine} against {baseline}"] = items, max(ratio.judged.margin for ratio in own)
    ends = [span_limits(items, margin) for items, margin in drawn.values()]
    limits = min((low for low, _ in ends), default=1.0), max((high for _, high in ends), default=1.0)
    panels = [
        spans(f"ratio-{index}-{number}", title, items, margin, limits)
        for number, (title, (items, margin)) in enumerate(drawn.items())
    ]
    rows: list[list[Content]] = []
    for ratio in ratios:
        mark = _MARKS.get(ratio.judged.verdict, "unclear" if ratio.judged.verdict == "unclear" else "same")
        *numbers, words = ratio.cells().values()
        rows.append([*numbers, marked(mark, words)])
    head = tuple(ratios[0].cells())
    keys = legend(
        [("faster", "good", False), ("slower", "bad", False), ("the same, or too noisy to tell", "muted", False)]
    )
    caption = (
        "How many times faster the engine is, from pairs of one round each: the point is the median of the pairs, the "
        "line the interval that holds the true ratio (the table says how often). Right of 1 the engine is faster. An "
        "interval has to leave the grey band to be called a difference. All panels have one scale."
    )
    shown = table(head, rows, numbers=(3, 5, 6, 7))
    return [
        tag("h3", "Ratios"),
        plots(panels, caption, keys=keys) if panels else "",
        shown if len(rows) <= MOST_ROWS else more(f"All {len(rows)} ratios", shown),
    ]


def _pictures(case: CaseRuns) -> list[Content]:
    drawn = {run.contender: run for run in case.runs if run.picture is not None}
    if not drawn:
        return []
    first = next((run for run in drawn.values() if run.role == "baseline"), None)
    others = [run for run in drawn.values() if run is not first]
    differences = {}
    for run in others:
        assert run.picture is not None
        if first is not None and first.picture is not None:
            differences[run.contender] = picture_difference(run.picture, first.picture)
    end = scale_end([found for found in differences.values() if found is not None])
    columns: list[list[Html]] = []
    for run in ([first] if first else []) + others:
        assert run.picture is not None
        columns.append(
            [picture(run.picture, f"drawn by {run.contender}: {case.case}", f"{run.contender} ({run.role})")]
        )
        found = differences.get(run.contender)
        if found is not None and first is not None:
            text = f"difference from {first.contender}: largest {found.largest}, mean {found.mean:.3g} of 255"
            alt = f"where {run.contender} differs from {first.contender}"
            columns[-1].append(picture(difference_map(found, end), alt, text, plain=True))
    caption: list[Content] = [
        "One prompt and one seed for all, drawn after the last round, which counts in no time; the first of a batch. "
        "Transparency shows the checkerboard."
    ]
    if differences:
        caption += [" Difference: the largest of red, green and blue, on white and on black. ", colour_bar(end)]
    return [tag("h3", "Pictures"), side_by_side(columns), tag("div", caption, class_="note")]
