"""The file and the scale of an adapter to be merged into a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.system.files import with_home


@dataclass(frozen=True)
class LoraFile:
    """A safetensors file of low-rank updates, and the scale that multiplies them."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `FILE` or `FILE:SCALE`. If a file of the whole name exists, colons in it do not count.

        Raises:
            UsageError: the scale is not finite.
            QwenImageError: the path is in the home folder of a user that does not exist.
        """
        path, colon, number = text.rpartition(":")
        scale = _number(number) if colon and not with_home(text).is_file() else None
        if scale is None:
            return cls(with_home(text))
        if not math.isfinite(scale):
            raise UsageError(f"--lora {text}: the scale is {number}, expected a finite number")
        return cls(with_home(path), scale)

    @property
    def described(self) -> str:
        """The name of the file, and the scale if it is not 1."""
        return self.path.name if self.scale == 1 else f"{self.path.name}:{self.scale:g}"

    def __str__(self) -> str:
        return f"{self.path}:{self.scale!r}" if self.scale != 1 else str(self.path)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
