"""Typed values out of a checkpoint's JSON, with errors that name file, key, found and expected."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from qwen_image_engine.engines.core.errors import QwenImageError

MISSING = object()


class Reader:
    """Reads typed values out of one JSON object and remembers which keys were read.

    Args:
        values: the parsed object.
        where: the file, for error messages.
        prefix: path of the object inside the file, such as `text_config.`.
    """

    def __init__(self, values: Any, where: str, prefix: str = "") -> None:
        if not isinstance(values, Mapping):
            raise QwenImageError(f"{where}: {prefix[:-1] or 'the file'} holds {_short(values)}, expected a JSON object")
        self.values: Mapping[str, Any] = values
        self.where = where
        self.prefix = prefix
        self.read: set[str] = set()

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise the one error of a missing or unacceptable key."""
        found = self.values.get(key, MISSING)
        state = "is missing" if found is MISSING else f"is {_short(found)}"
        raise QwenImageError(f"{self.where}: key {self.prefix + key!r} {state}, expected {expected}")

    def get(self, key: str) -> Any:
        """The raw value, or `MISSING`."""
        self.read.add(key)
        return self.values.get(key, MISSING)

    def expect(self, key: str, *accepted: Any, why: str = "") -> None:
        """Require one of the values that the network implements."""
        found = self.get(key)
        if not any(type(found) is type(value) and found == value for value in accepted):
            choices = " or ".join(_short(value) for value in accepted)
            self.refuse(key, choices + (f" ({why})" if why else ""))

    def integer(self, key: str, expected: str = "a positive integer") -> int:
        """A positive integer; JSON's true and 3.0 are none."""
        found = self.get(key)
        if not _is_positive_integer(found):
            self.refuse(key, expected)
        return int(found)

    def number(self, key: str, expected: str = "a positive number") -> float:
        """A positive finite number."""
        found = self.get(key)
        if not _is_number(found) or found <= 0:
            self.refuse(key, expected)
        return float(found)

    def integers(self, key: str, length: int | None = None) -> tuple[int, ...]:
        """A list of positive integers, not empty."""
        expected = f"a list of {length or 'one or more'} positive integers"
        return tuple(self._list(key, length, _is_positive_integer, expected))

    def places(self, key: str) -> tuple[int, ...]:
        """A list of rising indices from 0, which may be empty."""
        found = self.get(key)
        counts = isinstance(found, list) and all(value == 0 or _is_positive_integer(value) for value in found)
        if not counts or any(isinstance(value, bool) for value in found) or sorted(set(found)) != found:
            self.refuse(key, "a list of rising whole numbers from 0")
        return tuple(found)

    def numbers(self, key: str, length: int, expected: str) -> tuple[float, ...]:
        """A list of `length` finite numbers."""
        return tuple(float(value) for value in self._list(key, length, _is_number, expected))

    def booleans(self, key: str, length: int, expected: str) -> tuple[bool, ...]:
        """A list of `length` booleans."""
        return tuple(self._list(key, length, lambda value: isinstance(value, bool), expected))

    def _list(self, key: str, length: int | None, accepts: Callable[[Any], bool], expected: str) -> list[Any]:
        found = self.get(key)
        if not isinstance(found, list) or not found or not all(accepts(value) for value in found):
            self.refuse(key, expected)
        if length is not None and len(found) != length:
            self.refuse(key, expected)
        return list(found)

    def section(self, key: str) -> Reader:
        """A nested object."""
        if not isinstance(self.get(key), Mapping):
            self.refuse(key, "a JSON object")
        return Reader(self.values[key], self.where, f"{self.prefix}{key}.")

    def ignored(self) -> tuple[str, ...]:
        """Keys that were never read, with their path, sorted."""
        return tuple(sorted(self.prefix + key for key in self.values if key not in self.read))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        QwenImageError: the file is missing, unreadable, or holds something else.
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
        raise QwenImageError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _short(value: Any) -> str:
    """The value as JSON spells it, cut to one readable line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "an object"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
