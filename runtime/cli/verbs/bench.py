"""`qwen-image bench`: the speed of a bundle, stage by stage, compared with baselines."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_image_engine.engines.backends import ENGINES
from qwen_image_engine.runtime.cli.shared.arguments import picture_size
from qwen_image_engine.runtime.cli.shared.output_files import add_report_argument
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.cli.verbs.run import add_kernel_specialization_argument, add_sigmas_argument
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION
from qwen_image_engine.runtime.sampling.solver import SOLVERS
from qwen_image_engine.runtime.system.files import check_writable, write_json
from qwen_image_engine.runtime.system.text import table

if TYPE_CHECKING:
    from qwen_image_engine.runtime.tools.bench.result import Benchmark

SUMMARY = "how fast a bundle is, beside other ways of drawing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags. `bench` checks ranges, so that the API has the same errors."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "-m", "--model", metavar="CHECKPOINT", help="what torch and diffusers run (where the manifest says)"
    )
    parser.add_argument(
        "--baseline",
        type=_names,
        default=(),
        metavar="NAME[,NAME…]",
        help="run beside the bundle, in turn: torch, torch-compile, diffusers, diffusers-bf16, or another engine",
    )
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=["onnxruntime"], help="(onnxruntime)")
    size = (DEFAULT_RESOLUTION, DEFAULT_RESOLUTION)
    parser.add_argument(
        "--size", type=picture_size, nargs="+", default=[size], metavar="WxH", help="in pixels (1024x1024)"
    )
    parser.add_argument(
        "-s", "--steps", type=int, nargs="+", default=[None], help="of the sampler (40, or the checkpoint's own)"
    )
    parser.add_argument(
        "--solver", nargs="+", choices=SOLVERS, default=["euler"], help="of the sampling equation (euler)"
    )
    add_sigmas_argument(parser)
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="images drawn at once (1)")
    parser.add_argument("--references", type=int, nargs="+", default=[0], help="numbers of reference images (0)")
    parser.add_argument(
        "--reference-resolution",
        type=int,
        default=DEFAULT_RESOLUTION,
        metavar="PIXELS",
        help=f"side of each of them ({DEFAULT_RESOLUTION})",
    )
    parser.add_argument("--rounds", type=int, help="that count, after one to warm up; a ratio needs 5 (12)")
    parser.add_argument("--threads", type=int, help="of each way (every core)")
    parser.add_argument(
        "--memory",
        choices=("resident", "sequential"),
        default="resident",
        help="keep every engine loaded, or one at a time (resident)",
    )
    add_kernel_specialization_argument(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the --json document here as well")
    add_report_argument(parser)


def execute(options: argparse.Namespace) -> VerbResult:
    """Run the benchmark and return its report. A baseline that is not installed has a row with the reason."""
    from qwen_image_engine.runtime.tools.bench.measure import ROUNDS, bench
    from qwen_image_engine.runtime.tools.report.folder import check_report, write_report

    if options.output:
        check_writable(options.output)
    if options.report:
        check_report(options.report)
    found = bench(
        options.bundle,
        checkpoint=options.model,
        engines=options.engine,
        baselines=options.baseline,
        sizes=options.size,
        steps=options.steps,
        solvers=options.solver,
        sigmas=options.sigmas,
        batches=options.batch,
        references=options.references,
        reference_resolution=options.reference_resolution,
        rounds=ROUNDS if options.rounds is None else options.rounds,
        threads=options.threads,
        memory=options.memory,
        kernel_specialization=options.kernel_specialization,
        pictures=options.report is not None,
    )
    output, report = (None if path is None else str(path) for path in (options.output, options.report))
    found = replace(found, settings=replace(found.settings, output=output, report=report))
    document = found.to_json()
    if options.output:
        write_json(options.output, document)
    if options.report:
        write_report(found, options.report)
    return VerbResult(document, list(_lines(found)))


def _lines(found: "Benchmark") -> Iterator[str]:
    contenders = [
        contender.cells(lambda seconds: f"{seconds:.2f} s")
        for contender in found.contenders
        if contender.missing is None
    ]
    yield from _table(("way", "version", "precision", "load", "peak memory", "on disk"), contenders, right=(3, 4, 5))
    yield from (
        f"✗ {contender.name}: {contender.missing}" for contender in found.contenders if contender.missing is not None
    )
    for case in found.cases:
        yield from ("", str(case.case))
        times = case.times(lambda seconds: f"{1000 * seconds:.2f} ms")
        head = ("way", "stage", "p50", "p90", "p99", "samples", "peak memory")
        yield from _table(head, times, right=(2, 3, 4, 5, 6))
        yield from (
            f"{run.contender}: the machine was noisy: {run.noise.describe()}" for run in case.runs if run.noise.noisy
        )
        ratios = [ratio.cells() for ratio in case.ratios()]
        if ratios:
            head = ("engine", "against", "stage", "ratio", "interval", "covers", "verdict")
            yield from _table(head, ratios, right=(3, 5))


def _table(head: Sequence[str], rows: Sequence[Mapping[str, str]], right: Sequence[int]) -> list[str]:
    return table([head, *([row[name] for name in head] for row in rows)], right=right)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
