"""The page of a benchmark."""

from __future__ import annotations

from collections.abc import Iterator

from qwen_image_engine.runtime.bench_result import Benchmark, WayFacts
from qwen_image_engine.runtime.bench_runs import CaseRuns, Ratio
from qwen_image_engine.runtime.bench_stages import STEADY_STEP
from qwen_image_engine.runtime.commands.report import size_text
from qwen_image_engine.runtime.report.bench_case import case_section, ratio_text, seconds_text
from qwen_image_engine.runtime.report.html import Content, Html, table, tag
from qwen_image_engine.runtime.report.plot import Bar, bars
from qwen_image_engine.runtime.report.sections import commands, environment, facts, page, plots, section, verdict

MOST_VERDICTS = 6
_MARKS = {"faster": "good", "slower": "bad", "same": "good", "unclear": "unclear"}


def bench_page(found: Benchmark) -> str:
    """One page: what it comes to, then each case, memory, the ways, and how to repeat it."""
    bundle = found.bundle
    series = {way.name: index for index, way in enumerate(found.ways)}
    return page(
        str(bundle.get("checkpoint", found.settings.bundle)),
        "Benchmark",
        f"{found.settings.bundle}: {bundle.get('target')} {bundle.get('precision')}, "
        f"{found.settings.rounds} rounds of every way in turn, {found.settings.memory} engines.",
        list(_verdicts(found)),
        list(_noise(found)),
        _figures(found),
        [case_section(case, index, series) for index, case in enumerate(found.cases)],
        _memory(found, series),
        _ways(found.ways),
        environment(found.environment, _settings(found)),
        commands(found.settings.command()),
    )


def _verdicts(found: Benchmark) -> Iterator[Html]:
    ratios = [(case, ratio) for case in found.cases for ratio in case.ratios()]
    totals = [(case, ratio) for case, ratio in ratios if ratio.stage == "total"]
    for case, ratio in totals[:MOST_VERDICTS]:
        steps = [
            own
            for other, own in ratios
            if other is case
            if (own.engine, own.baseline, own.stage) == (ratio.engine, ratio.baseline, STEADY_STEP)
        ]
        yield verdict(
            _MARKS[ratio.judged.verdict],
            _headline(ratio),
            f"A whole picture, {case.case}: {ratio_text(ratio)}.",
            *(f"A steady step: {ratio_text(step)}." for step in steps),
        )
    if len(totals) > MOST_VERDICTS:
        yield tag("p", f"{len(totals) - MOST_VERDICTS} more stand in the tables below.", class_="note")
    if not totals:
        for case in found.cases:
            for run in case.runs:
                quantiles = run.quantiles["total"]
                title = f"{run.way} draws {case.case} in {seconds_text(quantiles['p50'])}"
                yield verdict(
                    "unclear", title, "Median of all rounds. No baseline was run beside it, so no ratio stands here."
                )


def _headline(ratio: Ratio) -> str:
    engine, other, judged = ratio.engine, ratio.baseline, ratio.judged
    if judged.interval is None or judged.verdict == "unclear":
        return f"{engine} against {other}: too noisy or too little to tell"
    if judged.verdict == "same":
        return f"{engine} is as fast as {other}"
    return f"{engine} is {judged.interval.median:.2f}x as fast as {other}"


def _noise(found: Benchmark) -> Iterator[Html]:
    noisy = [(case, run) for case in found.cases for run in case.runs if run.noise.noisy]
    if not noisy:
        told = any(run.noise.steadiness is not None for case in found.cases for run in case.runs)
        yield tag(
            "p",
            "The machine was quiet by both measures." if told else "Nothing tells how noisy the machine was.",
            class_="note",
        )
        return
    lines = [f"{run.way}, {case.case}: {run.noise.describe()}" for case, run in noisy]
    yield verdict("unclear", "The machine was noisy, and differences have to exceed that", *lines)


def _figures(found: Benchmark) -> Html:
    items = {}
    for way in found.ways:
        if way.role != "engine" or way.missing is not None:
            continue
        prefix = f"{way.name}: " if len(found.settings.engines) > 1 else ""
        first = found.cases[0]
        run = next(run for run in first.runs if run.way == way.name)
        items[f"{prefix}picture, p50"] = seconds_text(run.quantiles["total"]["p50"])
        if STEADY_STEP in run.quantiles:
            items[f"{prefix}steady step, p50"] = seconds_text(run.quantiles[STEADY_STEP]["p50"])
        items[f"{prefix}load"] = seconds_text(way.load_s)
        if way.peak_bytes is not None:
            items[f"{prefix}peak memory"] = size_text(way.peak_bytes)
        items[f"{prefix}on disk"] = size_text(way.disk_bytes)
    return facts(items)


def _memory(found: Benchmark, series: dict[str, int]) -> Html:
    ways = [way for way in found.ways if way.missing is None]
    panels: list[Html] = []
    peaks = [
        Bar(way.name, way.peak_bytes, size_text(way.peak_bytes), series[way.name]) for way in ways if way.peak_bytes
    ]
    if peaks:
        panels.append(bars("memory-process", "whole process, ever", peaks))
    loads = [
        Bar(way.name, way.load_peak.resident_bytes, size_text(way.load_peak.resident_bytes), series[way.name])
        for way in ways
        if way.load_peak is not None
    ]
    if loads:
        panels.append(bars("memory-load", "while loading", loads))
    disk = [Bar(way.name, way.disk_bytes, size_text(way.disk_bytes), series[way.name]) for way in ways]
    panels.append(bars("disk", "bytes on disk", disk))
    content: list[Content] = [
        plots(
            panels,
            "The most that was resident in each way's process, as the kernel counted it, and the bytes of the files "
            "that it reads. All bars of a panel start at 0.",
        )
    ]
    for index, case in enumerate(found.cases):
        stages = list(dict.fromkeys(stage for run in case.runs for stage in run.peaks))
        by_stage = [
            bars(f"memory-{index}-{number}", stage, _stage_peaks(case, stage, series))
            for number, stage in enumerate(stages)
        ]
        if by_stage:
            content += [
                tag("h3", f"By stage: {case.case}"),
                plots(
                    by_stage,
                    "Peak resident memory of the whole process in each stage, read every 20 ms: engines that are "
                    "loaded count, whether they run or not.",
                ),
                _peak_table(case),
            ]
    folders = found.bundle.get("disk_bytes") or {}
    content.append(
        table(
            ("bundle's folder", "bytes on disk"),
            [(name, size_text(size)) for name, size in folders.items()],
            numbers=(1,),
        )
    )
    return section("Memory and disk", content)


def _stage_peaks(case: CaseRuns, stage: str, series: dict[str, int]) -> list[Bar]:
    return [
        Bar(run.way, run.peaks[stage].resident_bytes, size_text(run.peaks[stage].resident_bytes), series[run.way])
        for run in case.runs
        if stage in run.peaks
    ]


def _peak_table(case: CaseRuns) -> Html:
    rows = [
        (run.way, stage, *map(size_text, (peak.resident_bytes, peak.anonymous_bytes, peak.file_bytes)))
        for run in case.runs
        for stage, peak in run.peaks.items()
    ]
    return table(("way", "stage", "resident", "allocated", "mapped files"), rows, numbers=(2, 3, 4), caption="Peaks")


def _ways(ways: tuple[WayFacts, ...]) -> Html:
    rows: list[tuple[Content, ...]] = []
    for way in ways:
        if way.missing is not None:
            rows.append((way.name, way.role, tag("span", way.missing, class_="wrap"), "", "", "", ""))
            continue
        peak = "" if way.peak_bytes is None else size_text(way.peak_bytes)
        numbers = (seconds_text(way.load_s), peak, size_text(way.disk_bytes))
        rows.append((way.name, way.role, way.version, way.precision, *numbers))
    head = ("way", "role", "version", "precision", "load", "peak memory", "on disk")
    note = (
        "Each way was loaded in a process of its own, and all drew in turn. Load is from a process that has imported "
        "nothing to one that can draw, once."
    )
    return section("Ways", table(head, rows, numbers=(4, 5, 6)), tag("p", note, class_="note"))


def _settings(found: Benchmark) -> list[tuple[str, str]]:
    bundle, settings = found.bundle, found.settings
    rows = [("bundle", settings.bundle), ("checkpoint", str(bundle.get("checkpoint")))]
    rows += [(key, str(bundle[key])) for key in ("config_sha256", "weights_sha256") if bundle.get(key)]
    threads = "every core" if settings.threads is None else str(settings.threads)
    return [*rows, ("threads of a way", threads), ("memory policy", settings.memory)]
