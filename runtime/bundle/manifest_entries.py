"""A checkpoint as the command's flags name it: what a bundle records, and what an error's advice repeats."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def checkpoint_flags(
    folder: str | Path, transformer_file: str | Path | None, loras: Iterable[str], attention: str | None
) -> str:
    """The flags, with spaces between; `loras` are each FILE or FILE:SCALE."""
    flags = [f"-m {folder}"]
    if transformer_file is not None:
        flags.append(f"--transformer {transformer_file}")
    flags += [f"--lora {lora}" for lora in loras]
    if attention is not None:
        flags.append(f"--attention {attention}")
    return " ".join(flags)
