"""A checkpoint as the command's flags name it: what a bundle records, and what an error's advice repeats."""

from __future__ import annotations

from pathlib import Path


def checkpoint_flags(folder: str | Path, transformer_file: str | Path | None) -> str:
    """The flags, with spaces between."""
    flags = [f"-m {folder}"]
    if transformer_file is not None:
        flags.append(f"--transformer {transformer_file}")
    return " ".join(flags)
