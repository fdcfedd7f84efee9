"""JSON files of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import read_regular
from qwen_image_engine.runtime.system.json_schema import MAX_JSON_BYTES, SchemaError, described, parse


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        QwenImageError: the file is missing, unreadable, not regular or larger than `MAX_JSON_BYTES`, or does not hold a
            JSON object.
    """
    try:
        value = parse(read_regular(path, MAX_JSON_BYTES))
    except OSError as error:
        raise QwenImageError(
            f"{path}: cannot be read ({error.strerror or error}); the checkpoint is incomplete"
        ) from error
    except SchemaError as error:
        raise QwenImageError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise QwenImageError(f"{path}: holds {described(value)}, expected a JSON object")
    return value
