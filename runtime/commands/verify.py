"""`qwen-image verify`: how close a bundle is to the fp32 reference, row by row."""

import argparse
from pathlib import Path

from qwen_image_engine.runtime.commands.checkpoint import add_weight_arguments
from qwen_image_engine.runtime.commands.export_packages import export_packages
from qwen_image_engine.runtime.commands.outputs import check_writable, write_json
from qwen_image_engine.runtime.commands.report import Report, table
from qwen_image_engine.runtime.commands.run import add_engine_arguments

SUMMARY = "how close a bundle is to the fp32 reference"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("-m", "--model", metavar="CHECKPOINT", help="folder or hub name (where the manifest says)")
    parser.add_argument("--output", type=Path, metavar="VERIFY.json", help="write the --json document here as well")
    add_weight_arguments(parser)
    add_engine_arguments(parser)


def execute(options: argparse.Namespace) -> Report:
    """Hash, record the reference, compare; exit code 1 where a row is beyond its threshold."""
    with export_packages():
        from qwen_image_engine.export.verify import verify_bundle
        from qwen_image_engine.reference.lora_file import LoraFile

    if options.output:
        check_writable(options.output)
    result = verify_bundle(
        options.bundle,
        options.model,
        transformer_file=options.transformer,
        loras=[LoraFile.parse(text) for text in options.lora] or None,
        attention=options.attention,
        engine=options.engine,
        threads=options.threads,
    )
    document = result.to_json()
    if options.output:
        write_json(options.output, document)

    # A quantised bundle's steps are judged by their mean; the worst stands beside it.
    rows = [("", "component", "case", "relative L2", "threshold", "worst step", "cosine", "max abs")]
    rows += [
        (
            "✓" if row.passed else "✗",
            row.component,
            row.case,
            f"{row.judged.relative_l2:.1e}",
            f"{row.threshold.relative_l2:.0e}",
            f"{row.worst.relative_l2:.1e}" if len(row.runs) > 1 else "",
            f"{row.judged.cosine:.9f}",
            f"{row.judged.max_abs:.1e}",
        )
        for row in result.rows
    ]
    failed = sum(not row.passed for row in result.rows)
    verdict = (
        f"{failed} of {len(result.rows)} rows are beyond their thresholds"
        if failed
        else "every row is within its threshold"
    )
    lines = [
        f"✓ {result.files} files are what their hashes say",
        *table(rows, right=(3, 4, 5, 6, 7)),
        f"{verdict} ({result.engine} {result.engine_version}, {result.precision})",
    ]
    return Report(document, lines, 0 if result.passed else 1)
