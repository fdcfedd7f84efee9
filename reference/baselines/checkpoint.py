"""The checkpoint of a benchmark's baseline: opened, measured, and compared with the bundle's checkpoint."""

from __future__ import annotations

from pathlib import Path

from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.checkpoint.diffusers_pipeline import DiffusersPipeline
from qwen_image_engine.reference.checkpoint.recorded import check_recorded, open_recorded
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest
from qwen_image_engine.runtime.tools.bench.spec import ContenderSpec

_ADVICE = "name the right one with -m"


def open_checkpoint(spec: ContenderSpec) -> Checkpoint:
    """Open the checkpoint that the bundle was made from, or the checkpoint at `spec.checkpoint` if it is given.

    Adapters and a single file of the bundle are opened with it.

    Raises:
        QwenImageError: the checkpoint is missing, or its configuration is not the one that the bundle was made from.
    """
    manifest = read_manifest(Path(spec.bundle))
    checkpoint = open_recorded(manifest, spec.checkpoint, flags=("-m",))
    found, expected = checkpoint.config_sha256(), manifest.checkpoint.config_sha256
    check_recorded(spec.bundle, checkpoint, "configuration", found, expected, _ADVICE)
    return checkpoint


def pipeline_folder(pipeline: DiffusersPipeline, manifest: Manifest) -> str:
    """Return the folder that a diffusers pipeline was loaded from.

    Contenders run in processes of their own, which the pipeline cannot reach.

    Raises:
        QwenImageError: the pipeline has another class, or differs from its files.
    """
    source = manifest.checkpoint
    opened = Checkpoint.open(
        pipeline, transformer_file=source.transformer_file, attention=source.attention, variant=source.variant
    )
    return str(opened.folder)


def check_weights(spec: ContenderSpec) -> None:
    """Check that the checkpoint has the weights that the bundle was made from.

    The weights are hashed, which takes as long as reading them.

    Raises:
        QwenImageError: the weights have another hash than the bundle's manifest says.
    """
    checkpoint, source = open_checkpoint(spec), read_manifest(Path(spec.bundle)).checkpoint
    check_recorded(spec.bundle, checkpoint, "weights", checkpoint.weights_sha256(), source.weights_sha256, _ADVICE)


def stored_bytes(checkpoint: Checkpoint) -> int:
    """Return the bytes of all files with weights."""
    return sum(file.stat().st_size for file in checkpoint.weight_files)
