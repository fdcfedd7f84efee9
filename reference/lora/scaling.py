"""What an adapter's product is multiplied by: alpha over the rank, as PEFT scales it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.system.json_schema import MISSING, NUMBER, Reader, described, named

METADATA = "lora_adapter_metadata"
"""Where diffusers' `save_lora_weights` keeps PEFT's settings as JSON, in the file's own metadata."""

_PREFIX = "transformer."


@dataclass(frozen=True)
class AdapterConfig:
    """PEFT's settings of a whole file: alpha, those of linears by pattern, and whether ranks count by their root.

    `alpha_pattern` are regular expressions of the end of a linear's name, the first that matches deciding (PEFT,
    `get_pattern_key`); `rank_stabilised` is rsLoRA (arXiv 2312.03732).
    """

    alpha: float
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool

    @classmethod
    def from_metadata(cls, path: Path, metadata: Mapping[str, str]) -> Self | None:
        """None where the file at `path` has none.

        Raises:
            QwenImageError: they are not in the expected format, or those of an adapter of another kind.
        """
        if METADATA not in metadata:
            return None
        where = f"{path}, {METADATA}"
        try:
            values = json.loads(metadata[METADATA])
        except (ValueError, RecursionError) as error:
            raise QwenImageError(f"{where}: not JSON ({error})") from error
        if isinstance(values, dict):
            values = {key.removeprefix(_PREFIX): value for key, value in values.items()}
        reader = Reader(values, where)
        if reader.get("use_dora") is True:
            reader.refuse("use_dora", "false: an adapter with magnitudes (DoRA) cannot be merged here")
        return cls(
            reader.number("lora_alpha"),
            _patterns(reader),
            reader.get("use_rslora") is True,
        )

    def factor(self, linear: str, rank: int) -> float:
        """Of one linear."""
        alpha = next(
            (alpha for pattern, alpha in self.alpha_pattern.items() if re.match(rf"(.*\.)?({pattern})$", linear)),
            self.alpha,
        )
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _patterns(reader: Reader) -> dict[str, float]:
    if reader.get("alpha_pattern") in (MISSING, None):
        return {}
    patterns = reader.take("alpha_pattern", named(NUMBER))
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise QwenImageError(
                f"{reader.where}: key 'alpha_pattern' has the key {described(pattern)}, expected a regular expression "
                f"({error})"
            ) from error
    return {pattern: float(alpha) for pattern, alpha in patterns.items()}
