"""The kinds of values of request fields: each checks a JSON value, reads a form's text, and has a JSON schema."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.model.size import SIDE_MULTIPLE, nearest_sides
from qwen_image_engine.runtime.serve.api.errors import ApiError
from qwen_image_engine.runtime.system.json_schema import described, is_integer, is_number, parse

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)
_PADDED = re.compile(r"0*([1-9]\d{0,4})x0*([1-9]\d{0,4})", re.ASCII)
_NUMBERS = re.compile(r"[\s\[(]*[-+.]?\d", re.ASCII)


class Kind(ABC):
    """The kind of a field's value."""

    @abstractmethod
    def check(self, name: str, value: Any) -> Any:
        """Return the value of the field `name`.

        Raises:
            ApiError: the value is of another type or is out of range.
        """

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""

    @abstractmethod
    def words(self) -> str:
        """Return the values for a person."""

    def from_text(self, text: str) -> Any:
        """Return the JSON value of a form's text, which `check` has not seen yet."""
        return text


@dataclass(frozen=True)
class Text(Kind):
    """A text of at most `most` characters."""

    most: int

    def check(self, name: str, value: Any) -> str:
        """Return the text. `Kind.check` describes the arguments."""
        if not isinstance(value, str):
            raise wrong_type(name, "a string", value)
        if len(value) > self.most:
            found = f"'{name}' has {len(value)} characters, expected at most {self.most}; shorten it"
            raise ApiError(400, found, name, "string_above_max_length")
        return value

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        return {"type": "string", "maxLength": self.most}

    def words(self) -> str:
        """Return the values for a person."""
        return f"text of at most {self.most:,} characters"


@dataclass(frozen=True)
class Choice(Kind):
    """A word from a short list."""

    known: tuple[str, ...]

    def check(self, name: str, value: Any) -> str:
        """Return the word; `Kind.check` describes the arguments."""
        if not isinstance(value, str):
            raise wrong_type(name, "a string", value)
        if value not in self.known:
            known = ", ".join(f"'{word}'" for word in self.known)
            found = f"'{name}' is {described(value)}, supported values are {known}"
            raise ApiError(400, found, name, "invalid_value")
        return value

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        return {"type": "string", "enum": list(self.known)}

    def words(self) -> str:
        """Return the values for a person."""
        return ", ".join(f"`{word}`" for word in self.known)


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number from `least` to `most`."""

    least: int
    most: int

    def check(self, name: str, value: Any) -> int:
        """Return the number; `Kind.check` describes the arguments."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(name, "an integer", value)
        if not is_integer(value) or not self.least <= value <= self.most:
            raise _out_of_range(name, "integer", value, value < self.least, self.least, self.most)
        return value

    def from_text(self, text: str) -> Any:
        """Return the number, or a text that is none."""
        return _json(text)

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        return {"type": "integer", "minimum": self.least, "maximum": self.most}

    def words(self) -> str:
        """Return the values for a person."""
        return "whole number" if self.most >= 2**63 else f"{self.least} to {self.most}"


@dataclass(frozen=True)
class Number(Kind):
    """A finite number from `least` to `most`."""

    least: float
    most: float

    def check(self, name: str, value: Any) -> float:
        """Return the number; `Kind.check` describes the arguments."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(name, "a number", value)
        if not is_number(value) or not self.least <= value <= self.most:
            raise _out_of_range(name, "number", value, value < self.least, self.least, self.most)
        return float(value)

    def from_text(self, text: str) -> Any:
        """Return the number, or a text that is none."""
        return _json(text)

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        return {"type": "number", "minimum": self.least, "maximum": self.most}

    def words(self) -> str:
        """Return the values for a person."""
        return f"number from {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class Truth(Kind):
    """A truth value."""

    def check(self, name: str, value: Any) -> bool:
        """Return the value; `Kind.check` describes the arguments."""
        if not isinstance(value, bool):
            raise wrong_type(name, "a boolean", value)
        return value

    def from_text(self, text: str) -> Any:
        """Return the value, or a text that is none."""
        return _json(text.lower())

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        return {"type": "boolean"}

    def words(self) -> str:
        """Return the values for a person."""
        return "`true`, `false`"


@dataclass(frozen=True)
class Sigmas(Kind):
    """A spacing of the noise levels by its name, or the levels themselves, in (0, 1] and falling."""

    names: tuple[str, ...]
    most: int

    def check(self, name: str, value: Any) -> str | list[float]:
        """Return the name or the levels; `Kind.check` describes the arguments."""
        if isinstance(value, str) and not _NUMBERS.match(value):
            return Choice(self.names).check(name, value)
        if isinstance(value, str):
            text = f"'{name}' is a string of numbers, expected an array of them, such as [1, 0.5], or a spacing's name"
            raise ApiError(400, text, name, "invalid_type")
        if not isinstance(value, list):
            raise wrong_type(name, "a string or an array of numbers", value)
        if not 1 <= len(value) <= self.most or not all(is_number(item) and 0 < item <= 1 for item in value):
            found = f"'{name}' is {described(value)}, expected 1 to {self.most} numbers above 0, at most 1"
            raise ApiError(400, found, name, "invalid_value")
        if any(after >= before for before, after in pairwise(value)):
            raise ApiError(400, f"'{name}' is {described(value)}, expected falling numbers", name, "invalid_value")
        return [float(item) for item in value]

    def from_text(self, text: str) -> Any:
        """Return the name or the levels."""
        return _json(text)

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        level = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
        levels = {"type": "array", "items": level, "minItems": 1, "maxItems": self.most}
        return {"oneOf": [Choice(self.names).schema(), levels]}

    def words(self) -> str:
        """Return the values for a person."""
        return f"{Choice(self.names).words()}, or falling numbers above 0, at most 1"


@dataclass(frozen=True)
class Size(Kind):
    """The size of a picture: "auto", or "WIDTHxHEIGHT" on the model's grid, of at most `pixels` and `side`."""

    pixels: int
    side: int

    def check(self, name: str, value: Any) -> tuple[int, int] | None:
        """Return (width, height) in pixels, or None for "auto"; `Kind.check` describes the arguments."""
        if not isinstance(value, str):
            raise wrong_type(name, "a string", value)
        if value == "auto":
            return None
        found = _SIZE.fullmatch(value)
        padded = _PADDED.fullmatch(value)
        if found is None and padded is not None:
            text = f"'{name}' is {described(value)}, expected it without leading zeros: {padded[1]}x{padded[2]}"
            raise ApiError(400, text, name, "invalid_value")
        if found is None:
            text = f"'{name}' is {described(value)}, expected 'auto' or WIDTHxHEIGHT in pixels, such as 1024x1024"
            raise ApiError(400, text, name, "invalid_value")
        width, height = int(found[1]), int(found[2])
        if width * height > self.pixels or max(width, height) > self.side:
            text = f"'{name}' is {value}, expected at most {self.pixels} pixels and {self.side} a side"
            raise ApiError(400, text, name, "invalid_value")
        nearest = nearest_sizes(width, height)
        if (width, height) not in nearest:
            text = f"'{name}' is {value}, expected multiples of {SIDE_MULTIPLE}; the nearest are " + " and ".join(
                f"{across}x{down}" for across, down in nearest
            )
            raise ApiError(400, text, name, "invalid_value")
        return width, height

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        return {"type": "string", "pattern": "^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"}

    def words(self) -> str:
        """Return the values for a person."""
        return f"`auto`, or `WIDTHxHEIGHT` in multiples of {SIDE_MULTIPLE}"


@dataclass(frozen=True)
class Picture(Kind):
    """An uploaded picture file, which only a form can hold."""

    def check(self, name: str, value: Any) -> Any:
        """Raise; `bodies` reads files itself."""
        raise ApiError(400, f"'{name}' is a text, expected a file; send it as a part with a file name", name)

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        return {"type": "string", "format": "binary"}

    def words(self) -> str:
        """Return the values for a person."""
        return "file"


def nearest_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Return the valid size itself, or the two valid sizes nearest to (width, height), nearest first."""
    sizes = [(across, down) for across in nearest_sides(width) for down in nearest_sides(height)]
    return sorted(sizes, key=lambda size: abs(size[0] - width) + abs(size[1] - height))[:2]


def wrong_type(name: str, expected: str, value: Any) -> ApiError:
    """Return the error of a value of another type. It names the type, and not the value, which may be a prompt."""
    kinds: list[tuple[type, str]] = [
        (bool, "a boolean"),
        (str, "a string"),
        (int, "an integer"),
        (float, "a number"),
        (list, "an array"),
        (dict, "an object"),
    ]
    found = next((word for kind, word in kinds if isinstance(value, kind)), "null")
    return ApiError(400, f"'{name}' is {found}, expected {expected}", name, "invalid_type")


def _out_of_range(name: str, kind: str, value: float, below: bool, least: float, most: float) -> ApiError:
    code = f"{kind}_{'below_min' if below else 'above_max'}_value"
    return ApiError(
        400,
        f"'{name}' is {described(value)}, expected {'an' if kind == 'integer' else 'a'} {kind} from {least} to {most}",
        name,
        code,
    )


def _json(text: str) -> Any:
    """Return the value of a text that is JSON, and any other text as it is."""
    try:
        return parse(text)
    except QwenImageError:
        return text
