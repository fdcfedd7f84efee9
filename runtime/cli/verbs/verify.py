"""`qwen-image verify`: the distance of bundles from the fp32 reference, row by row."""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

from qwen_image_engine.runtime.cli.shared.checkpoint_arguments import add_weight_arguments
from qwen_image_engine.runtime.cli.shared.extras import export_packages
from qwen_image_engine.runtime.cli.shared.output_files import add_report_argument
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.cli.verbs.run import add_engine_arguments
from qwen_image_engine.runtime.system.files import check_writable, write_json

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
    add_weight_arguments(parser)
    add_engine_arguments(parser)


def execute(options: argparse.Namespace) -> VerbResult:
    """Hash the files, record the reference, compare. The exit code is 1 if a row exceeds its threshold or a limit."""
    from qwen_image_engine.runtime.tools.report.folder import check_report, write_report

    with export_packages():
        from qwen_image_engine.export.verify.limits import Limit
        from qwen_image_engine.export.verify.parity import verify
        from qwen_image_engine.export.verify.report.tables import tables
        from qwen_image_engine.reference.lora.file import LoraFile

    limits = tuple(Limit.parse(text) for text in options.fail_on)
    if options.output:
        check_writable(options.output)
    if options.report:
        check_report(options.report)
    result = verify(
        options.bundles,
        options.model,
        transformer_file=options.transformer,
        loras=[LoraFile.parse(text) for text in options.lora] or None,
        attention=options.attention,
        variant=options.variant,
        engine=options.engine,
        threads=options.threads,
        limits=limits,
        layers=options.layers,
        judge=options.judge,
        polygraphy=options.polygraphy,
        pictures=options.report is not None,
    )
    named = (("--output", options.output), ("--report", options.report))
    written = [word for flag, path in named if path is not None for word in (flag, str(path))]
    result = replace(result, command=shlex.join([*shlex.split(result.command), *written]))
    document = result.to_json()
    if options.output:
        write_json(options.output, document)
    if options.report:
        write_report(result, options.report)
    return VerbResult(document, list(tables(result.bundles)), 0 if result.passed else 1)
