"""The factor of an adapter's product: alpha over the rank, as PEFT scales it.

PEFT 0.21: `LoraModel._create_and_replace` chooses alpha and rank, `LoraLayer.update_layer` divides them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.storage.json_file import read_json
from qwen_image_engine.runtime.system.json_schema import MISSING, NUMBER, Reader, SchemaError, described, named, parse

METADATA = "lora_adapter_metadata"
"""Key of PEFT's settings as JSON in the metadata of files from diffusers' `save_lora_weights`."""

CONFIG = "adapter_config.json"
"""Name of PEFT's settings in a folder of `save_pretrained`."""

_PREFIX = "transformer."

_KINDS = {"LOHA": "LoHa", "LOKR": "LoKr", "ADALORA": "AdaLoRA"}

_VARIANTS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "alora_invocation_tokens": "aLoRA",
    "lora_bias": "LoRA with biases",
    "layer_replication": "LoRA on replicated layers",
    "target_parameters": "LoRA on parameters outside of linears",
}
"""Kinds of LoRA whose product is not the whole change of a weight, by the setting that turns them on."""

_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Starts of `init_lora_weights` with which PEFT changes the weights under the adapter (`LoraLayer.update_layer`)."""

_CHOICES = 4


@dataclass(frozen=True)
class AdapterConfig:
    """PEFT's settings of an adapter.

    The first pattern that matches the end of a linear's name counts (PEFT, `get_pattern_key`).

    Attributes:
        where: place of the settings, for errors.
        alpha: alpha of linears that no pattern matches.
        alphas: pairs of a pattern and alpha.
        rank: rank of linears that no pattern matches; None if the settings do not have one.
        ranks: pairs of a pattern and rank.
        rank_stabilised: whether alpha is divided by the root of the rank: rsLoRA (arXiv 2312.03732).
    """

    where: str
    alpha: float
    alphas: tuple[tuple[re.Pattern[str], float], ...]
    rank: float | None
    ranks: tuple[tuple[re.Pattern[str], float], ...]
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
            values = parse(metadata[METADATA])
        except SchemaError as error:
            raise QwenImageError(f"{where}: {error}") from error
        if isinstance(values, dict):
            values = {key.removeprefix(_PREFIX): value for key, value in values.items()}
        return cls._from_json(values, where)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read the settings in the file at `path`, as PEFT's `save_pretrained` writes it.

        Raises:
            QwenImageError: the file cannot be read, is not in the expected format, or belongs to an adapter of another
                kind.
        """
        return cls._from_json(read_json(path), str(path))

    @classmethod
    def _from_json(cls, values: Any, where: str) -> Self:
        reader = Reader(values, where)
        kind = reader.get("peft_type")
        if kind not in (MISSING, "LORA"):
            name = _KINDS.get(kind, kind) if isinstance(kind, str) else "unknown"
            reader.refuse("peft_type", f'"LORA": adapters of the kind {name} cannot be merged here')
        for setting, name in _VARIANTS.items():
            if reader.get(setting) is not MISSING and reader.get(setting):
                reader.refuse(setting, f"no such setting: adapters of the kind {name} cannot be merged here")
        init = reader.get("init_lora_weights")
        if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
            reader.refuse(
                "init_lora_weights",
                "an initialisation that leaves the weights under the adapter as they are; save it as a plain LoRA with "
                "PEFT's path_initial_model_for_weight_conversion",
            )
        return cls(
            where,
            reader.number("lora_alpha"),
            _patterns(reader, "alpha_pattern"),
            None if reader.get("r") is MISSING else reader.number("r"),
            _patterns(reader, "rank_pattern"),
            reader.get("use_rslora") is True,
        )

    def factor(self, linear: str, rank: int) -> float:
        """Return the factor of the product for one linear: alpha over the rank, or over its root.

        Raises:
            QwenImageError: the settings give the linear another rank.
        """
        if self.rank is not None and (expected := _first(self.ranks, linear, self.rank)) != rank:
            raise QwenImageError(
                f"{self.where}: gives {linear} rank {expected:g}, and its weights have rank {rank}: the settings are "
                "of another adapter"
            )
        alpha = _first(self.alphas, linear, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _first(patterns: tuple[tuple[re.Pattern[str], float], ...], linear: str, default: float) -> float:
    return next((value for pattern, value in patterns if pattern.match(linear)), default)


def _patterns(reader: Reader, key: str) -> tuple[tuple[re.Pattern[str], float], ...]:
    if reader.get(key) in (MISSING, None):
        return ()
    return tuple(
        (_compiled(reader, key, text), float(value)) for text, value in reader.take(key, named(NUMBER)).items()
    )


def _compiled(reader: Reader, key: str, text: str) -> re.Pattern[str]:
    """Compile a pattern as PEFT does. Patterns that may backtrack for minutes are refused: they come from strangers."""
    expected = f"{reader.where}: key {key!r} has the key {described(text)}, expected a regular expression"
    bare = re.sub(r"\\.", "", text)
    if re.search(r"\)[*+?{]", bare) or len(re.findall(r"[*+?{(]", bare)) > _CHOICES:
        raise QwenImageError(f"{expected} with at most {_CHOICES} repetitions and groups, and no repeated group")
    try:
        return re.compile(rf"(.*\.)?({text})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise QwenImageError(f"{expected} ({error})") from error
