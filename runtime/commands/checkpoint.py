"""Flags that name a checkpoint, for every verb that reads one."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_image_engine.engines.errors import UsageError

if TYPE_CHECKING:
    from qwen_image_engine.reference.checkpoint import Checkpoint


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare -m and what may stand beside it."""
    parser.add_argument("-m", "--model", required=True, metavar="CHECKPOINT", help="folder, or name in the hub cache")
    add_weight_arguments(parser)


def add_weight_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what changes the weights of a checkpoint."""
    parser.add_argument(
        "--transformer",
        type=Path,
        metavar="FILE",
        help="a single .safetensors file, as ComfyUI has it, in the place of the checkpoint's own transformer",
    )


def refuse_weight_arguments(options: argparse.Namespace, why: str) -> None:
    """Refuse the flags of `add_weight_arguments` where they can change nothing.

    Raises:
        UsageError: one is given.
    """
    if options.transformer is not None:
        raise UsageError(f"--transformer: {why}")


def open_checkpoint(name: str, options: argparse.Namespace) -> "Checkpoint":
    """The checkpoint `name`, with what the flags of `add_weight_arguments` ask for.

    Raises:
        QwenImageError: see `Checkpoint.open`.
    """
    from qwen_image_engine.reference.checkpoint import Checkpoint

    return Checkpoint.open(name, transformer_file=options.transformer)
