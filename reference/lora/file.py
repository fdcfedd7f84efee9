"""The file and the scale of an adapter to be merged into a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.system.files import with_home

PEFT_WEIGHTS = "adapter_model.safetensors"
"""Name of the weights in a folder of PEFT's `save_pretrained`."""

DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
"""Name of the weights in a folder of diffusers' `save_lora_weights`."""


@dataclass(frozen=True)
class LoraFile:
    """A safetensors file of low-rank updates, or the folder that its writer made, and the scale of the updates."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `PATH` or `PATH:SCALE`. If a file or folder of the whole name exists, colons in it do not count.

        Raises:
            UsageError: the scale is not finite.
            QwenImageError: the path is in the home folder of a user that does not exist.
        """
        path, colon, number = text.rpartition(":")
        scale = _number(number) if colon and not with_home(text).exists() else None
        if scale is None:
            return cls(with_home(text))
        if not math.isfinite(scale):
            raise UsageError(f"--lora {text}: the scale is {number}, expected a finite number")
        return cls(with_home(path), scale)

    def weights(self) -> Path:
        """Return the safetensors file: `path`, or the file in that folder.

        Raises:
            QwenImageError: the path does not exist, or is a folder without such a file or with several.
        """
        if self.path.is_file():
            return self.path
        if not self.path.is_dir():
            raise QwenImageError(f"{self.path}: does not exist, expected an adapter as PATH or PATH:SCALE")
        names = (PEFT_WEIGHTS, DIFFUSERS_WEIGHTS)
        found = [name for name in names if (self.path / name).is_file()]
        if len(found) != 1:
            state = f"both {' and '.join(found)}: name one of them" if found else f"neither {' nor '.join(names)}"
            raise QwenImageError(f"{self.path}: is a folder with {state}; expected an adapter as PATH or PATH:SCALE")
        return self.path / found[0]

    @property
    def name(self) -> str:
        """The name of the file or folder."""
        return self.path.absolute().name

    @property
    def described(self) -> str:
        """The name of the file or folder, and the scale if it is not 1."""
        return self.name if self.scale == 1 else f"{self.name}:{self.scale:g}"

    def __str__(self) -> str:
        return f"{self.path}:{self.scale!r}" if self.scale != 1 else str(self.path)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
