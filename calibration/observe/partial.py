"""An unfinished calibration: the sums of the trajectories so far, in one file in the folder of the result."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_image_engine.calibration.observe.settings import Settings
from qwen_image_engine.calibration.observe.statistics import InputSums
from qwen_image_engine.calibration.observe.tensor_file import Fields, pack, read, write_whole
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.system.json_schema import OBJECT, WHOLE, SchemaError, parse, record

PARTIAL = "partial.safetensors"

Sums = Mapping[str, Mapping[str, InputSums]]
"""Sums by component and activation."""

_METADATA = "calibration"
_FACTS = record({"settings": OBJECT, "trajectories": WHOLE})


@dataclass(frozen=True, eq=False)
class Partial:
    """The sums over the first trajectories of a calibration.

    Attributes:
        settings: settings of the calibration.
        trajectories: number of finished trajectories.
        sums: sums over these trajectories.
    """

    settings: Settings
    trajectories: int
    sums: Sums


def write_partial(folder: Path, partial: Partial) -> None:
    """Replace the file in `folder` atomically.

    Raises:
        QwenImageError: the file cannot be written.
    """
    fields = {
        component: {name: sums.tensors() for name, sums in activations.items()}
        for component, activations in partial.sums.items()
    }
    facts = {"settings": partial.settings.to_json(), "trajectories": partial.trajectories}
    write_whole(folder / PARTIAL, pack(fields, {_METADATA: json.dumps(facts)}))


def read_partial(folder: Path, device: str) -> Partial | None:
    """Read the unfinished calibration in `folder`, with the sums on `device`. Return None if there is none.

    Raises:
        QwenImageError: the file is no regular one, is damaged or of another schema version.
    """
    path = folder / PARTIAL
    if not os.path.lexists(path):
        return None
    try:
        fields, metadata = read(path, device)
        if _METADATA not in metadata:
            raise SchemaError(f"its metadata has no {_METADATA!r}")
        facts = parse(metadata[_METADATA])
        _FACTS(facts, "")
        settings = Settings.from_json(facts["settings"])
        if facts["trajectories"] > settings.prompts:
            raise SchemaError(f"{facts['trajectories']} trajectories of {settings.prompts} prompts")
        return Partial(settings, facts["trajectories"], _sums(fields))
    except QwenImageError as error:
        raise QwenImageError(f"{path}: no unfinished calibration ({error}); remove it to begin again") from error


def _sums(fields: Fields) -> Sums:
    return {
        component: {name: InputSums.read(f"{component}, {name}", tensors) for name, tensors in activations.items()}
        for component, activations in fields.items()
    }
