"""An unfinished measurement of sensitivity: errors of the linears so far, in a file in the folder of the result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_image_engine.calibration.observe.settings import Settings
from qwen_image_engine.calibration.observe.tensor_file import write_whole
from qwen_image_engine.calibration.sensitivity.sensitivity import Picture
from qwen_image_engine.calibration.sensitivity.teacher_forcing import Errors
from qwen_image_engine.engines.core.files import read_regular
from qwen_image_engine.runtime.system.json_schema import (
    MAX_JSON_BYTES,
    NOT_NEGATIVE,
    OBJECT,
    SchemaError,
    many,
    named,
    parse,
    record,
)

_PARTIAL = record({"decides": OBJECT, "alone": named(many(many(NOT_NEGATIVE)))})


@dataclass(frozen=True)
class PartialSensitivity:
    """The file of an unfinished measurement.

    Attributes:
        path: path of the file.
        decides: all values that the errors depend on, as JSON.
    """

    path: Path
    decides: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        folder: Path,
        target: str,
        precision: str,
        settings: Settings,
        calibration_sha256: str,
        pictures: Sequence[Picture],
    ) -> PartialSensitivity:
        """Return the file for a measurement; see `Sensitivity` for the arguments."""
        decides = {
            "target": target,
            "precision": precision,
            "settings": settings.to_json(),
            "calibration_sha256": calibration_sha256,
            "pictures": [asdict(picture) for picture in pictures],
        }
        path = folder / f"sensitivity-{target}-{precision}.partial.json"
        return cls(path, json.loads(json.dumps(decides)))  # tuples are lists once they are read

    def read(self) -> dict[str, Errors]:
        """Read the errors by linear.

        The result is empty if the file is missing, is damaged, or belongs to another measurement. The next `write`
        replaces the file.
        """
        try:
            data = parse(read_regular(self.path, MAX_JSON_BYTES))
            _PARTIAL(data, "")
        except (OSError, SchemaError):
            return {}
        found = data["alone"]
        steps = [len(picture["sigmas"]) for picture in self.decides["pictures"]]
        if data["decides"] != self.decides or any([*map(len, errors)] != steps for errors in found.values()):
            return {}
        return {
            linear: tuple(tuple(float(error) for error in picture) for picture in errors)
            for linear, errors in found.items()
        }

    def write(self, alone: Mapping[str, Errors]) -> None:
        """Replace the file atomically. JSON preserves every bit of a float.

        Raises:
            QwenImageError: the file cannot be written.
        """
        write_whole(self.path, json.dumps({"decides": self.decides, "alone": alone}).encode())

    def remove(self) -> None:
        """Delete the file after the result is written."""
        self.path.unlink(missing_ok=True)
