"""`qwen-image verify`: the distance of bundles from the fp32 reference, row by row; or that of their pictures."""

import argparse
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.cli.shared.arguments import picture_size, spacing
from qwen_image_engine.runtime.cli.shared.checkpoint_arguments import add_weight_arguments
from qwen_image_engine.runtime.cli.shared.extras import export_packages
from qwen_image_engine.runtime.cli.shared.output_files import add_report_argument
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.cli.verbs.calibrate import read_prompts
from qwen_image_engine.runtime.cli.verbs.run import add_engine_arguments
from qwen_image_engine.runtime.sampling.fast import FAST
from qwen_image_engine.runtime.sampling.schedule import DEFAULT_STEPS
from qwen_image_engine.runtime.sampling.solver import SOLVERS
from qwen_image_engine.runtime.system.files import check_writable, write_json

if TYPE_CHECKING:
    from qwen_image_engine.export.verify.pictures.result import PictureComparison
    from qwen_image_engine.export.verify.result import Verifications

SUMMARY = "how close bundles are to the fp32 reference"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="one or more, of one checkpoint")
    parser.add_argument("-m", "--model", metavar="CHECKPOINT", help="folder or hub name (where the manifest says)")
    parser.add_argument("--output", type=Path, metavar="VERIFY.json", help="write the --json document here as well")
    add_report_argument(parser)
    parser.add_argument(
        "--fail-on",
        action="append",
        default=[],
        metavar="ROW=VALUE",
        help="exit code 1 also where a component, or teacher_forced, has a relative L2 above VALUE; may be repeated",
    )
    parser.add_argument("--layers", action="store_true", help="compare the outputs of the step's layers too")
    parser.add_argument(
        "--judge",
        type=int,
        metavar="N",
        help="of `shapes`: draw N held-out prompts of each kind and judge the pictures",
    )
    parser.add_argument(
        "--polygraphy",
        type=Path,
        metavar="DIR",
        help="save the reference's inputs and outputs for `polygraphy run` in a new folder, with the commands",
    )
    _add_picture_arguments(parser)
    add_weight_arguments(parser)
    add_engine_arguments(parser)


def _add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="instead of components, compare pictures with the reference's many-step solution: PSNR and FLIP by solver "
        "and number of steps, beside euler with as many evaluations; needs flip-evaluator",
    )
    parser.add_argument(
        "--solver",
        type=lambda text: tuple(text.split(",")),
        metavar="NAME[,NAME…]",
        help=f"with --pictures: one or more of {', '.join(SOLVERS)} (euler,{FAST.solver})",
    )
    parser.add_argument(
        "-s",
        "--steps",
        type=int,
        nargs="+",
        metavar="N",
        help=f"with --pictures: of each solver ({FAST.steps} and {DEFAULT_STEPS}, or the checkpoint's own)",
    )
    parser.add_argument(
        "--sigmas",
        type=spacing,
        metavar="S,S…|NAME",
        help="with --pictures: noise levels of each solver, as in run; euler keeps the checkpoint's own beside them",
    )
    parser.add_argument(
        "--size", type=picture_size, metavar="WxH", help="with --pictures: of every picture, in pixels (256x256)"
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="with --pictures: UTF-8, one prompt a line (a few, with edits)"
    )
    parser.add_argument("--guidance", type=float, help="with --pictures: 1 for none; above 1 each step runs twice (1)")
    parser.add_argument(
        "-n", "--negative-prompt", help="with --pictures and --guidance: what to steer away from (empty)"
    )
    parser.add_argument(
        "--solution", type=int, metavar="N", help="with --pictures: steps of the solution, which heun takes (200)"
    )


def execute(options: argparse.Namespace) -> VerbResult:
    """Compare components, or with `--pictures` pictures.

    The exit code is 1 if a row exceeds its threshold or a limit, or if a picture could not be drawn.
    """
    from qwen_image_engine.runtime.tools.report.folder import check_report, write_report

    _check_together(options)
    prompts = read_prompts(options.prompts) if options.prompts else None
    if options.output:
        check_writable(options.output)
    if options.report:
        check_report(options.report)
    result: Verifications | PictureComparison
    lines: Iterable[str]
    result, lines = _pictures(options, prompts) if options.pictures else _components(options)
    named = (("--prompts", options.prompts), ("--output", options.output), ("--report", options.report))
    written = [word for flag, path in named if path is not None for word in (flag, str(path))]
    result = replace(result, command=shlex.join([*shlex.split(result.command), *written]))
    document = result.to_json()
    if options.output:
        write_json(options.output, document)
    if options.report:
        write_report(result, options.report)
    return VerbResult(document, list(lines), 0 if result.passed else 1)


def _check_together(options: argparse.Namespace) -> None:
    """Raise if flags of the one comparison are given for the other.

    Raises:
        UsageError: a flag does not go with `--pictures`, or needs it.
    """
    of_pictures = ("solver", "steps", "sigmas", "size", "prompts", "guidance", "negative_prompt", "solution")
    of_components = ("fail_on", "layers", "polygraphy")
    others = of_components if options.pictures else of_pictures
    given = [name for name in others if getattr(options, name) not in (None, False, [])]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        fault = "compares components; leave it or --pictures out" if options.pictures else "needs --pictures; add it"
        raise UsageError(f"{flag} {fault}")


def _pictures(options: argparse.Namespace, prompts: list[str] | None) -> tuple["PictureComparison", Iterable[str]]:
    """Measure the pictures, and return the result with its lines for a person."""
    with export_packages():
        from qwen_image_engine.export.verify.pictures.measure import verify_pictures
        from qwen_image_engine.export.verify.pictures.settings import SOLUTION, Setting
        from qwen_image_engine.export.verify.pictures.tables import tables

    asked = {
        "solvers": options.solver,
        "steps": options.steps,
        "sigmas": options.sigmas,
        "size": options.size,
        "guidance": options.guidance,
        "negative_prompt": options.negative_prompt,
        "solution": None if options.solution is None else Setting(SOLUTION.solver, options.solution),
        "prompts": prompts,
        "judge": options.judge,
    }
    result = verify_pictures(
        options.bundles,
        options.model,
        **_shared(options),
        pictures=options.report is not None,
        **{name: value for name, value in asked.items() if value is not None},
    )
    return result, tables(result)


def _shared(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of both comparisons: the checkpoint's parts, and what runs the bundles."""
    from qwen_image_engine.reference.lora.file import LoraFile

    return {
        "transformer_file": options.transformer,
        "loras": [LoraFile.parse(text) for text in options.lora] or None,
        "attention": options.attention,
        "variant": options.variant,
        "engine": options.engine,
        "threads": options.threads,
    }


def _components(options: argparse.Namespace) -> tuple["Verifications", Iterable[str]]:
    """Hash the files, record the reference, compare; and return the result with its lines for a person."""
    with export_packages():
        from qwen_image_engine.export.verify.limits import Limit
        from qwen_image_engine.export.verify.parity import verify
        from qwen_image_engine.export.verify.report.tables import tables

    result = verify(
        options.bundles,
        options.model,
        **_shared(options),
        limits=tuple(Limit.parse(text) for text in options.fail_on),
        layers=options.layers,
        judge=options.judge,
        polygraphy=options.polygraphy,
        pictures=options.report is not None,
    )
    return result, tables(result.bundles)
