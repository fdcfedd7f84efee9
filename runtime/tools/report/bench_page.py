"""The page of a benchmark."""

from __future__ import annotations

from qwen_image_engine.runtime.system.text import size_text
from qwen_image_engine.runtime.tools.bench.result import Benchmark, ContenderInfo
from qwen_image_engine.runtime.tools.bench.runs import CaseRuns
from qwen_image_engine.runtime.tools.bench.stages import STEADY_STEP
from qwen_image_engine.runtime.tools.report.bench_case import case_section, seconds_text
from qwen_image_engine.runtime.tools.report.bench_verdict import verdicts
from qwen_image_engine.runtime.tools.report.html import Content, Html, table, tag
from qwen_image_engine.runtime.tools.report.plot import Bar, bars
from qwen_image_engine.runtime.tools.report.sections import (
    commands,
    environment,
    facts,
    page,
    plots,
    section,
    short_names,
)

_WAY_COLUMNS = ("way", "role", "version", "precision", "load", "peak memory", "on disk")


def bench_page(found: Benchmark) -> str:
    """Return the page: the verdicts, each case, memory, the contenders, and the command that repeats the benchmark."""
    bundle = found.bundle
    series = {contender.name: index for index, contender in enumerate(found.contenders)}
    return page(
        _title(found),
        "qwen-image bench",
        f"{found.settings.bundle}: {bundle.get('target')} {bundle.get('precision')}, "
        f"{found.settings.rounds} rounds of every way in turn, {found.settings.memory} engines.",
        list(verdicts(found)),
        _figures(found),
        [case_section(case, index, series) for index, case in enumerate(found.cases)],
        _memory(found, series),
        _ways(found.contenders),
        environment(found.environment, _settings(found)),
        commands(found.settings.command()),
    )


def _title(found: Benchmark) -> str:
    (name,) = short_names([found.settings.bundle])
    engines, baselines = (
        ", ".join(
            contender.name for contender in found.contenders if contender.role == role and contender.missing is None
        )
        for role in ("engine", "baseline")
    )
    return f"{name}: {engines}" + (f" against {baselines}" if baselines else "")


def _figures(found: Benchmark) -> Html:
    items = {}
    for contender in found.contenders:
        if contender.role != "engine" or contender.missing is not None:
            continue
        prefix = f"{contender.name}: " if len(found.settings.engines) > 1 else ""
        first = found.cases[0]
        run = next(run for run in first.runs if run.contender == contender.name)
        what = "picture" if len(found.cases) == 1 else f"picture of {first.case}"
        items[f"{prefix}{what}, p50"] = seconds_text(run.quantiles["total"]["p50"])
        if STEADY_STEP in run.quantiles:
            items[f"{prefix}steady step, p50"] = seconds_text(run.quantiles[STEADY_STEP]["p50"])
        items[f"{prefix}load"] = seconds_text(contender.load_s)
        if contender.peak_bytes is not None:
            items[f"{prefix}peak memory"] = size_text(contender.peak_bytes)
        items[f"{prefix}on disk"] = size_text(contender.disk_bytes)
    return facts(items)


def _memory(found: Benchmark, series: dict[str, int]) -> Html:
    contenders = [contender for contender in found.contenders if contender.missing is None]
    panels: list[Html] = []
    peaks = [
        Bar(contender.name, contender.peak_bytes, size_text(contender.peak_bytes), series[contender.name])
        for contender in contenders
        if contender.peak_bytes
    ]
    if peaks:
        panels.append(bars("memory-process", "whole process, ever", peaks))
    loads = [
        Bar(
            contender.name,
            contender.load_peak.resident_bytes,
            size_text(contender.load_peak.resident_bytes),
            series[contender.name],
        )
        for contender in contenders
        if contender.load_peak is not None
    ]
    if loads:
        panels.append(bars("memory-load", "while loading", loads))
    disk = [
        Bar(contender.name, contender.disk_bytes, size_text(contender.disk_bytes), series[contender.name])
        for contender in contenders
    ]
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
        Bar(
            run.contender,
            run.peaks[stage].resident_bytes,
            size_text(run.peaks[stage].resident_bytes),
            series[run.contender],
        )
        for run in case.runs
        if stage in run.peaks
    ]


def _peak_table(case: CaseRuns) -> Html:
    rows = [
        (run.contender, stage, *map(size_text, (peak.resident_bytes, peak.anonymous_bytes, peak.file_bytes)))
        for run in case.runs
        for stage, peak in run.peaks.items()
    ]
    return table(("way", "stage", "resident", "allocated", "mapped files"), rows, numbers=(2, 3, 4), caption="Peaks")


def _ways(contenders: tuple[ContenderInfo, ...]) -> Html:
    rows: list[tuple[Content, ...]] = []
    for contender in contenders:
        if contender.missing is not None:
            rows.append((contender.name, contender.role, tag("span", contender.missing, class_="wrap"), "", "", "", ""))
            continue
        rows.append(tuple(map(contender.cells(seconds_text).__getitem__, _WAY_COLUMNS)))
    note = (
        "Each way was loaded in a process of its own, and all drew in turn. Load is from a process that has imported "
        "nothing to one that can draw, once."
    )
    return section("Ways", table(_WAY_COLUMNS, rows, numbers=(4, 5, 6)), tag("p", note, class_="note"))


def _settings(found: Benchmark) -> list[tuple[str, str]]:
    bundle, settings = found.bundle, found.settings
    rows = [("bundle", settings.bundle), ("checkpoint", str(bundle.get("checkpoint")))]
    rows += [(key, str(bundle[key])) for key in ("config_sha256", "weights_sha256") if bundle.get(key)]
    threads = "every core" if settings.threads is None else str(settings.threads)
    return [*rows, ("threads of a way", threads), ("memory policy", settings.memory)]
