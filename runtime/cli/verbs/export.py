"""`qwen-image export`: a checkpoint to a bundle of engine files."""

import argparse
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from qwen_image_engine.runtime.bundle.manifest import Manifest
from qwen_image_engine.runtime.cli.shared.checkpoint_arguments import open_checkpoint
from qwen_image_engine.runtime.cli.shared.extras import export_packages
from qwen_image_engine.runtime.cli.shared.result import Report
from qwen_image_engine.runtime.cli.verbs.plan import add_recipe_arguments, chosen_recipe
from qwen_image_engine.runtime.system.progress import ProgressBar
from qwen_image_engine.runtime.system.text import size_text

SUMMARY = "turn a checkpoint into a bundle that the runtime draws with"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder to write")
    add_recipe_arguments(parser)
    parser.add_argument(
        "--calibration", type=Path, metavar="FOLDER", help="what `calibrate` wrote; fp8 and int8 for tensorrt need it"
    )


def execute(options: argparse.Namespace) -> Report:
    """Export; the bundle appears whole or not at all."""
    with export_packages():
        from qwen_image_engine.export.bundle.bundle import write_bundle
        from qwen_image_engine.export.bundle.request import ExportRequest

        chosen = chosen_recipe(options)  # a usage error comes before the checkpoint's
    checkpoint = open_checkpoint(options.model, options)
    began = time.perf_counter()
    request = ExportRequest.of(
        checkpoint, chosen, weights=options.weights, calibration=options.calibration, without=options.without
    )
    with _Progress(f"exporting {checkpoint.name}") as progress:
        manifest = write_bundle(request, options.bundle, progress)
    return _report(options.bundle, manifest, time.perf_counter() - began, progress.seconds)


def _report(bundle: Path, manifest: Manifest, seconds: float, stages: Mapping[str, float]) -> Report:
    size = sum(file.bytes for file in manifest.files.values())
    document = {
        "bundle": str(bundle),
        "files": len(manifest.files),
        "bytes": size,
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
        f"{len(manifest.files)} files, {size_text(size)}, {seconds:.1f} s",
        f"weights: {manifest.weights}, under the checkpoint's licence ({manifest.checkpoint.licence})",
        *(f"merged: {lora.name} at {lora.scale:g}, sha256 {lora.sha256}" for lora in manifest.loras),
    ]
    return Report(document, lines)


class _Progress(ExitStack):
    """The exporter's progress on a bar, which begins when the exporter knows how many bytes there are.

    `seconds` are those from the first word of a stage ("graph of step") to that of the next, or to the end.
    """

    def __init__(self, label: str) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self._stage: str | None = None
        self._since = 0.0
        self._label = label
        self._bar: ProgressBar | None = None
        self._shown = 0
        self.callback(self._enter, None)

    def _enter(self, stage: str | None) -> None:
        now = time.perf_counter()
        if self._stage is not None:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now

    def __call__(self, what: str, done: int, total: int) -> None:
        self._enter(what)
        if self._bar is None:
            self._bar = self.enter_context(ProgressBar(self._label, total, "bytes"))
        self._bar.advance(done - self._shown)
        self._shown = done
