"""The reference pipeline as a way of drawing in a benchmark: eager, or with the transformer's blocks compiled."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.lora.file import LoraFile
from qwen_image_engine.reference.networks.transformer import Transformer
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.system.memory_use import MemoryWatch
from qwen_image_engine.runtime.tools.bench.contender import Drawer, pipeline_drawer
from qwen_image_engine.runtime.tools.bench.load import WaySpec


def load_torch(spec: WaySpec, watch: MemoryWatch | None) -> Drawer:
    """Load it in fp32.

    Raises:
        QwenImageError: see `open_checkpoint`, or the checkpoint is damaged.
    """
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    checkpoint = open_checkpoint(spec)
    prepare = compile_blocks if spec.name == "torch-compile" else None
    pipeline = reference_pipeline(checkpoint, spec.memory, watch=watch, prepare=prepare)
    return pipeline_drawer(pipeline, torch.__version__, "fp32", stored_bytes(checkpoint))


def compile_blocks(network: nn.Module) -> None:
    """Compile the blocks of a transformer in place, once for all, as diffusers' `compile_repeated_blocks` does.

    The work is done when they first run, and again for what they have not seen: the warm-up of each case.
    """
    if isinstance(network, Transformer):
        for block in network.transformer_blocks:
            block.compile()


def open_checkpoint(spec: WaySpec) -> Checkpoint:
    """The checkpoint that the bundle was made from, adapters and single file included, or the one at `spec.checkpoint`.

    Raises:
        QwenImageError: it is missing, or its configuration is another than the bundle's.
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


def check_weights(spec: WaySpec) -> None:
    """Hash the weights, which takes as long as reading them, and compare.

    Raises:
        QwenImageError: they are not those that the bundle was made from.
    """
    checkpoint, source = open_checkpoint(spec), read_manifest(Path(spec.bundle)).checkpoint
    found = checkpoint.weights_sha256()
    if found != source.weights_sha256:
        raise QwenImageError(
            f"{spec.bundle} was not made from {checkpoint.place}: the checkpoint's weights have sha256 {found[:12]}…, "
            f"the bundle's {source.weights_sha256[:12]}…; name the right one with -m"
        )


def stored_bytes(checkpoint: Checkpoint) -> int:
    """Of every file that weights come from."""
    return sum(file.stat().st_size for file in checkpoint.weight_files)
