"""`qwen-image export`: the export of a checkpoint to a bundle of engine files."""

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from qwen_image_engine.runtime.bundle.manifest import Manifest
from qwen_image_engine.runtime.cli.shared.checkpoint_arguments import open_checkpoint
from qwen_image_engine.runtime.cli.shared.extras import export_packages
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.cli.shared.stage_progress import Bar, StageProgress
from qwen_image_engine.runtime.cli.verbs.plan import add_recipe_arguments, chosen_recipe
from qwen_image_engine.runtime.system.text import size_text

SUMMARY = "turn a checkpoint into a bundle that the runtime draws with"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder to write")
    add_recipe_arguments(parser)
    parser.add_argument(
        "--calibration", type=Path, metavar="FOLDER", help="what `calibrate` wrote; fp8 and int8 for tensorrt need it"
    )


def execute(options: argparse.Namespace) -> VerbResult:
    """Export the checkpoint. The bundle appears whole or not at all."""
    with export_packages():
        from qwen_image_engine.export.bundle.bundle import write_bundle
        from qwen_image_engine.export.bundle.request import ExportRequest

        chosen = chosen_recipe(options)  # a usage error comes before the checkpoint's
    checkpoint = open_checkpoint(options.model, options)
    began = time.perf_counter()
    request = ExportRequest.of(
        checkpoint, chosen, weights=options.weights, calibration=options.calibration, without=options.without
    )
    with StageProgress(lambda _: Bar(f"exporting {checkpoint.name}", "bytes")) as progress:
        manifest = write_bundle(request, options.bundle, progress)
    return _report(options.bundle, manifest, time.perf_counter() - began, progress.seconds)


def _report(bundle: Path, manifest: Manifest, seconds: float, stages: Mapping[str, float]) -> VerbResult:
    document = {
        "bundle": str(bundle),
        "files": len(manifest.files),
        "bytes": manifest.bytes,
        "components": list(manifest.components),
        "target": manifest.target,
        "precision": manifest.precision,
        "weights": manifest.weights,
        "checkpoint": {"name": manifest.checkpoint.name, "licence": manifest.checkpoint.licence},
        "loras": [asdict(lora) for lora in manifest.loras],
        "seconds": seconds,
        "stages": stages,
    }
    lines = [
        f"{bundle}: {', '.join(manifest.components)} for {manifest.target} in {manifest.precision}, "
        f"{len(manifest.files)} files, {size_text(manifest.bytes)}, {seconds:.1f} s",
        f"weights: {manifest.weights}, under the checkpoint's licence ({manifest.checkpoint.licence})",
        *(f"merged: {lora.name} at {lora.scale:g}, sha256 {lora.sha256}" for lora in manifest.loras),
    ]
    return VerbResult(document, lines)
