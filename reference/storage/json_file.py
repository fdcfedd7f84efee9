"""JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.system.json_schema import described


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        QwenImageError: the file is missing or unreadable, or does not hold a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QwenImageError(
            f"{path}: cannot be read ({error.strerror or error}); the checkpoint is incomplete"
        ) from error
    except (ValueError, RecursionError) as error:
        raise QwenImageError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise QwenImageError(f"{path}: holds {described(value)}, expected a JSON object")
    return value
