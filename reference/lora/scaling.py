"""The factor of an adapter's product: alpha over the rank, as PEFT scales it."""

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
"""Key of PEFT's settings as JSON in the metadata of files from diffusers' `save_lora_weights`."""

_PREFIX = "transformer."


@dataclass(frozen=True)
class AdapterConfig:
    """PEFT's settings of an adapter file.

    Attributes:
        alpha: alpha of linears that no pattern matches.
        alpha_pattern: alpha by regular expression of the end of a linear's name. The first match counts (PEFT,
            `get_pattern_key`).
        rank_stabilised: whether alpha is divided by the root of the rank: rsLoRA (arXiv 2312.03732).
    """

    alpha: float
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool

    @classmethod
    def from_metadata(cls, path: Path, metadata: Mapping[str, str]) -> Self | None:
        """Read the settings in the metadata of the file at `path`. None if the metadata has no settings.

        Raises:
            QwenImageError: the settings are not in the expected format, or belong to an adapter of another kind.
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
        """Return the factor of the product for one linear: alpha over the rank, or over its root."""
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
