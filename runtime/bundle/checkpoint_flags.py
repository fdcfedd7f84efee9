"""The command's flags that name a checkpoint. A bundle records them, and the advice of errors repeats them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qwen_image_engine.runtime.system.text import command_line


def checkpoint_flags(
    folder: str | Path,
    transformer_file: str | Path | None,
    loras: Iterable[str],
    attention: str | None,
    variant: str | None,
) -> str:
    """Return the flags as a shell takes them. Each item of `loras` is FILE or FILE:SCALE."""
    words = ["-m", folder]
    if variant is not None:
        words += ["--variant", variant]
    if transformer_file is not None:
        words += ["--transformer", transformer_file]
    for lora in loras:
        words += ["--lora", lora]
    if attention is not None:
        words += ["--attention", attention]
    return command_line(*words)
