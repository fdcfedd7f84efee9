"""Flags that name a checkpoint, for every verb that reads a checkpoint."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.model.facts import ATTENTION

if TYPE_CHECKING:
    from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
    from qwen_image_engine.reference.lora.adapter import Adapter


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `-m` and the flags of `add_weight_arguments`."""
    parser.add_argument("-m", "--model", required=True, metavar="CHECKPOINT", help="folder, or name in the hub cache")
    add_weight_arguments(parser)


def add_weight_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that choose or change the weights or the attention of a checkpoint."""
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="of the weight files, as diffusers names them: bf16 for *.bf16.safetensors (the files without a variant)",
    )
    parser.add_argument(
        "--transformer",
        type=Path,
        metavar="FILE",
        help="a single .safetensors file, as ComfyUI has it, in the place of the checkpoint's own transformer",
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="PATH[:SCALE]",
        help="a .safetensors LoRA, or PEFT's folder of one, to merge into the transformer (scale 1); may be repeated",
    )
    parser.add_argument(
        "--attention",
        choices=ATTENTION,
        help="how the transformer's tokens see each other, in the place of what its config.json says",
    )


def refuse_weight_arguments(options: argparse.Namespace, why: str) -> None:
    """Raise if a flag of `add_weight_arguments` is given. Call this if the flags have no effect, for the reason `why`.

    Raises:
        UsageError: a flag of `add_weight_arguments` is given.
    """
    given = {
        "--variant": options.variant,
        "--transformer": options.transformer,
        "--lora": options.lora or None,
        "--attention": options.attention,
    }
    flag = next((name for name, value in given.items() if value is not None), None)
    if flag is not None:
        raise UsageError(f"{flag}: {why}")


def weight_sources(checkpoint: "Checkpoint") -> dict[str, Any]:
    """Return the sources that change the weights of `checkpoint`, for a JSON document."""
    single, tensors = checkpoint.transformer_file, checkpoint.components["transformer"].tensors.values()
    return {
        "variant": checkpoint.variant,
        "transformer_file": None if single is None else str(single),
        "loras": [_described(adapter) for adapter in checkpoint.adapters],
        "attention": checkpoint.transformer.attention,
        "merged_weights": sum(tensor.stored is not tensor for tensor in tensors),
    }


def _described(adapter: "Adapter") -> dict[str, Any]:
    return {
        "path": str(adapter.file.path),
        "scale": adapter.file.scale,
        "writers": adapter.writers,
        "weights": len(adapter.updates),
        "ranks": adapter.ranks,
        "factors": adapter.factors,
        "scale_from": adapter.scale_from,
        "text_encoder_keys": adapter.text_encoder_keys,
        "notes": adapter.notes,
    }


def open_checkpoint(name: str, options: argparse.Namespace) -> "Checkpoint":
    """Open the checkpoint `name` with the changes that the flags of `add_weight_arguments` request.

    Notes on the adapters go to standard error.

    Raises:
        QwenImageError: the checkpoint is missing, incomplete, damaged or of another architecture, its pipeline does not
            match its files, or an adapter does not fit its transformer.
    """
    from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
    from qwen_image_engine.reference.lora.file import LoraFile

    loras = [LoraFile.parse(text) for text in options.lora]
    checkpoint = Checkpoint.open(
        name,
        transformer_file=options.transformer,
        loras=loras,
        attention=options.attention,
        variant=options.variant,
    )
    if sys.stderr is not None:  # a process without a console has none
        for note in (note for adapter in checkpoint.adapters for note in adapter.notes):
            print(f"qwen-image: note: {note}", file=sys.stderr, flush=True)
    return checkpoint
