"""The command's flags that name a checkpoint. A bundle records them, and the advice of errors repeats them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def checkpoint_flags(
    folder: str | Path,
    transformer_file: str | Path | None,
    loras: Iterable[str],
    attention: str | None,
    variant: str | None,
) -> str:
    """Return the flags, with spaces between. Each item of `loras` is FILE or FILE:SCALE."""
    flags = [f"-m {folder}"]
    if variant is not None:
        flags.append(f"--variant {variant}")
    if transformer_file is not None:
        flags.append(f"--transformer {transformer_file}")
    flags += [f"--lora {lora}" for lora in loras]
    if attention is not None:
        flags.append(f"--attention {attention}")
    return " ".join(flags)
