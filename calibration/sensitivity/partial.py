"""An unfinished measurement of sensitivity: the linears measured so far, in a file beside where the result will be."""

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


@dataclass(frozen=True)
class PartialSensitivity:
    """The file of one measurement.

    Attributes:
        path: of the file.
        decides: all that decides the errors, as JSON has it.
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
        """See `Sensitivity` for what is told."""
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
        """Errors by linear, as they were written.

        Nothing where there is no such file, or where it is damaged or was begun with anything else: the next `write`
        replaces it.
        """
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if data["decides"] != self.decides:
                return {}
            return {
                str(linear): tuple(tuple(float(error) for error in picture) for picture in errors)
                for linear, errors in data["alone"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def write(self, alone: Mapping[str, Errors]) -> None:
        """Replace the file, atomically; JSON keeps every bit of a float.

        Raises:
            QwenImageError: it cannot be written.
        """
        write_whole(self.path, json.dumps({"decides": self.decides, "alone": alone}).encode())

    def remove(self) -> None:
        """Once the result is written."""
        self.path.unlink(missing_ok=True)
