"""The checkpoint of a benchmark's baseline: opened, measured, and compared with the bundle's checkpoint."""

from __future__ import annotations

from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.checkpoint.diffusers_pipeline import DiffusersPipeline
from qwen_image_engine.reference.lora.file import LoraFile
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest
from qwen_image_engine.runtime.tools.bench.spec import WaySpec


def open_checkpoint(spec: WaySpec) -> Checkpoint:
    """Open the checkpoint that the bundle was made from, or the checkpoint at `spec.checkpoint` if it is given.

    Adapters and a single file of the bundle are opened with it.

    Raises:
        QwenImageError: the checkpoint is missing, or its configuration is not the one that the bundle was made from.
    """
    source = (manifest := read_manifest(Path(spec.bundle))).checkpoint
    try:
        checkpoint = Checkpoint.open(
            spec.checkpoint or source.path,
            transformer_file=source.transformer_file,
            loras=[LoraFile(Path(lora.path), lora.scale) for lora in manifest.loras],
            attention=source.attention,
        )
    except QwenImageError as error:
        if spec.checkpoint is not None:
            raise
        raise QwenImageError(f"{error}; say where the bundle's checkpoint is with -m") from error
    found = checkpoint.config_sha256()
    if found != source.config_sha256:
        raise QwenImageError(
            f"{spec.bundle} was not made from {checkpoint.place}: the checkpoint's configuration "
            f"has sha256 {found[:12]}…, the bundle's {source.config_sha256[:12]}…; name the right one with -m"
        )
    return checkpoint


def pipeline_folder(pipeline: DiffusersPipeline, manifest: Manifest) -> str:
    """Return the folder that a diffusers pipeline was loaded from.

    Contenders run in processes of their own, which the pipeline cannot reach.

    Raises:
        QwenImageError: the pipeline has another class, or differs from its files.
    """
    source = manifest.checkpoint
    opened = Checkpoint.open(pipeline, transformer_file=source.transformer_file, attention=source.attention)
    return str(opened.folder)


def check_weights(spec: WaySpec) -> None:
    """Check that the checkpoint has the weights that the bundle was made from.

    The weights are hashed, which takes as long as reading them.

    Raises:
        QwenImageError: the weights have another hash than the bundle's manifest says.
    """
    checkpoint, source = open_checkpoint(spec), read_manifest(Path(spec.bundle)).checkpoint
    found = checkpoint.weights_sha256()
    if found != source.weights_sha256:
        raise QwenImageError(
            f"{spec.bundle} was not made from {checkpoint.place}: the checkpoint's weights have sha256 {found[:12]}…, "
            f"the bundle's {source.weights_sha256[:12]}…; name the right one with -m"
        )


def stored_bytes(checkpoint: Checkpoint) -> int:
    """Return the bytes of all files with weights."""
    return sum(file.stat().st_size for file in checkpoint.weight_files)
