"""The checkpoint that a baseline of a benchmark runs: opened, measured, compared with the bundle's."""

from __future__ import annotations

from pathlib import Path

from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.checkpoint.diffusers_pipeline import DiffusersPipeline
from qwen_image_engine.reference.checkpoint.recorded import check_recorded, open_recorded
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest
from qwen_image_engine.runtime.tools.bench.spec import WaySpec

_ADVICE = "name the right one with -m"


def open_checkpoint(spec: WaySpec) -> Checkpoint:
    """The checkpoint that the bundle was made from, adapters and single file included, or the one at `spec.checkpoint`.

    Raises:
        QwenImageError: it is missing, or its configuration is another than the bundle's.
    """
    manifest = read_manifest(Path(spec.bundle))
    checkpoint = open_recorded(manifest, spec.checkpoint, flags=("-m",))
    found, expected = checkpoint.config_sha256(), manifest.checkpoint.config_sha256
    check_recorded(spec.bundle, checkpoint, "configuration", found, expected, _ADVICE)
    return checkpoint


def pipeline_folder(pipeline: DiffusersPipeline, manifest: Manifest) -> str:
    """Return the folder that a diffusers pipeline was loaded from; contenders run in processes that it does not reach.

    Raises:
        QwenImageError: it is no such pipeline, or its weights are not those of its files.
    """
    source = manifest.checkpoint
    opened = Checkpoint.open(pipeline, transformer_file=source.transformer_file, attention=source.attention)
    return str(opened.folder)


def check_weights(spec: WaySpec) -> None:
    """Hash the weights, which takes as long as reading them, and compare.

    Raises:
        QwenImageError: they are not those that the bundle was made from.
    """
    checkpoint, source = open_checkpoint(spec), read_manifest(Path(spec.bundle)).checkpoint
    check_recorded(spec.bundle, checkpoint, "weights", checkpoint.weights_sha256(), source.weights_sha256, _ADVICE)


def stored_bytes(checkpoint: Checkpoint) -> int:
    """Of every file that weights come from."""
    return sum(file.stat().st_size for file in checkpoint.weight_files)
