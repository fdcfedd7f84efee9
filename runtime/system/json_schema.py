"""The schema of a JSON document: small checks that combine, and errors that name place, value and expected format.

A check takes a value and a place, such as "cases[0].runs[1].rounds". It raises `SchemaError` if the value is not in the
expected format, and no other error for any JSON value.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields
from itertools import islice
from typing import Any, NoReturn, TypeGuard, get_type_hints

from qwen_image_engine.engines.core.errors import QwenImageError

Check = Callable[[Any, str], None]

MISSING = object()
"""Placeholder for the value of a missing key."""

MAX_JSON_BYTES = 16 << 20
"""Largest JSON file that is read. The manifest of a released model takes 0.5 MB. 16 MiB of empty lists take 0.4 GB."""

_MOST_DEPTH = 100
_SHOWN = 60
_LISTED = 8
_LONGEST_NAME = 1000
_LONGEST_PLACE = 200
_NO_NAME = re.compile("[\0\ud800-\udfff]")


class SchemaError(QwenImageError):
    """The error that a value is not in the expected format. The text names the place, the value and the expectation."""


def parse(data: bytes | str) -> Any:
    """Return the value of a JSON text; bytes are UTF-8.

    Raises:
        SchemaError: the text is not JSON or not UTF-8, or its lists and objects are nested too deeply.
    """
    try:
        value = json.loads(data.decode("utf-8") if isinstance(data, bytes) else data)
    except json.JSONDecodeError as error:
        raise SchemaError(f"not JSON ({error})") from error
    except UnicodeDecodeError as error:
        raise SchemaError(f"not JSON (no UTF-8 from byte {error.start} on)") from error
    except ValueError as error:  # Python reads no integer of more than 4,300 digits
        raise SchemaError("not JSON that is read here: it has a number of thousands of digits") from error
    except RecursionError as error:
        raise SchemaError(f"not JSON that is read here: nested more than {_MOST_DEPTH} deep") from error
    level = [value]
    for _ in range(_MOST_DEPTH):
        level = [
            item
            for holder in level
            if isinstance(holder, dict | list)
            for item in (holder.values() if isinstance(holder, dict) else holder)
        ]
        if not level:
            return value
    raise SchemaError(f"not JSON that is read here: nested more than {_MOST_DEPTH} deep")


def described(value: object) -> str:
    """Return a value in JSON notation, cut to one short line."""
    if value is MISSING:
        return "missing"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "an object" if value else "an empty object"
    if isinstance(value, list | tuple):
        return _cut(f"[{', '.join(map(_described_item, islice(value, _LISTED + 1)))}]") if value else "an empty list"
    if isinstance(value, str):
        return json.dumps(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…", ensure_ascii=not value.isprintable())
    try:
        return _cut(str(value))
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of thousands of digits"


def _described_item(value: object) -> str:
    return "[…]" if isinstance(value, list | tuple) and value else described(value)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a number that a float can hold. JSON's true and false, NaN and infinities are not."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float) and math.isfinite(value)


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer of at most 64 bits, signed or not. JSON's true and 3.0 are not."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**64


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer, 0 or more."""
    return is_integer(value) and value >= 0


def is_count(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer above 0."""
    return is_integer(value) and value > 0


def is_name(text: str) -> bool:
    """Return whether a text can be part of a path on every system: without NUL and halves of characters."""
    return _NO_NAME.search(text) is None


def is_list_of(value: object, test: Callable[[Any], bool], length: int | None = None) -> bool:
    """Return whether a value is a list of `length` items, or of one or more if None, that all pass `test`."""
    return (
        isinstance(value, list)
        and (len(value) > 0 if length is None else len(value) == length)
        and all(test(item) for item in value)
    )


def leaf(expected: str, test: Callable[[Any], bool]) -> Check:
    """Return the check of a value that passes `test`."""

    def check(value: Any, place: str) -> None:
        if not test(value):
            raise SchemaError(f"{place} is {described(value)}, expected {expected}")

    return check


def between(least: float, most: float) -> Check:
    """Return the check of a finite number from `least` to `most`."""
    return leaf(f"a number from {least:g} to {most:g}", lambda value: is_number(value) and least <= value <= most)


def whole_between(least: int, most: int) -> Check:
    """Return the check of an integer from `least` to `most`."""
    return leaf(f"a whole number from {least} to {most}", lambda value: is_integer(value) and least <= value <= most)


ANYTHING = leaf("anything", lambda value: True)
TEXT = leaf("a text", lambda value: isinstance(value, str))
TRUTH = leaf("true or false", lambda value: isinstance(value, bool))
NUMBER = leaf("a finite number", is_number)
POSITIVE = leaf("a finite number above 0", lambda value: is_number(value) and value > 0)
NOT_NEGATIVE = leaf("a finite number, 0 or more", lambda value: is_number(value) and value >= 0)
WHOLE = leaf("a whole number, 0 or more", is_whole)
COUNT = leaf("a whole number above 0", is_count)
SHARE = leaf("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
NAME = leaf(
    f"a name of 1 to {_LONGEST_NAME} characters",
    lambda value: isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and is_name(value),
)
SIGMAS = leaf(
    "null, a name or a list of numbers",
    lambda value: value is None or isinstance(value, str) or (isinstance(value, list) and is_list_of(value, is_number)),
)
OBJECT = leaf("an object", lambda value: isinstance(value, dict))


def optional(check: Check) -> Check:
    """Return the check of a value that passes `check` or is null."""

    def either(value: Any, place: str) -> None:
        if value is not None:
            check(value, place)

    return either


def many(item: Check, least: int = 1) -> Check:
    """Return the check of a list of at least `least` items that pass `item`."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list) or len(value) < least:
            raise SchemaError(f"{place} is {described(value)}, expected a list{' of one or more' if least else ''}")
        for index, found in enumerate(value):
            item(found, f"{place}[{index}]")

    return check


def named(item: Check, names: tuple[str, ...] | None = None) -> Check:
    """Return the check of an object with any keys, or only keys of `names`, whose values pass `item`."""

    def check(value: Any, place: str) -> None:
        for key, found in _object(value, place).items():
            if names is not None and key not in names:
                raise SchemaError(f"{place} has the unknown key {described(key)}, expected some of {', '.join(names)}")
            item(found, _within(place, key))

    return check


def record(required: Mapping[str, Check], extra: Mapping[str, Check] | None = None, *, closed: bool = False) -> Check:
    """Return the check of an object with the keys of `required`, optionally of `extra`, and if `closed` no others."""
    known = {**required, **(extra or {})}

    def check(value: Any, place: str) -> None:
        found = _object(value, place)
        for key in required:
            if key not in found:
                raise SchemaError(f"{_within(place, key)} is missing")
        for key, own in found.items():
            if key in known:
                known[key](own, _within(place, key))
            elif closed:
                raise SchemaError(f"{_within(place, key)} is no key that this version knows")

    return check


_BY_TYPE: Mapping[Any, Check] = {
    str: TEXT,
    int: WHOLE,
    float: NUMBER,
    bool: TRUTH,
    str | None: optional(TEXT),
    int | None: optional(WHOLE),
    float | None: optional(NUMBER),
    tuple[int, ...]: many(WHOLE, least=0),
    tuple[float, ...]: many(NUMBER, least=0),
    tuple[str, ...]: many(TEXT, least=0),
}


def fields_of(kind: type, **nested: Check) -> Check:
    """Return the check of an object that `dataclasses.asdict` made from a `kind`. Integers are not negative.

    Fields with a default may be absent. Other keys are errors.

    Args:
        kind: the dataclass.
        nested: checks of fields that are neither texts, numbers nor lists of texts or numbers.
    """
    types = get_type_hints(kind)
    checks = {item.name: nested.get(item.name) or _BY_TYPE[types[item.name]] for item in fields(kind)}
    absent = {item.name for item in fields(kind) if (item.default, item.default_factory) != (NO_DEFAULT, NO_DEFAULT)}
    return record(
        {name: check for name, check in checks.items() if name not in absent},
        {name: check for name, check in checks.items() if name in absent},
        closed=True,
    )


def _object(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SchemaError(f"{place or 'it'} is {described(value)}, expected an object")
    return value


def _within(place: str, key: str) -> str:
    shown = key if key.isprintable() and len(key) <= _LONGEST_PLACE else described(key)
    return f"{place}.{shown}" if place else shown


class Reader:
    """A reader of checked values from one JSON object, which remembers the keys that were read.

    Args:
        values: the parsed object.
        where: name of the file, for error messages.
        prefix: path of the object inside the file, such as `text_config.`.

    Raises:
        QwenImageError: `values` is not an object.
    """

    def __init__(self, values: Any, where: str, prefix: str = "") -> None:
        if not isinstance(values, Mapping):
            raise QwenImageError(
                f"{where}: {prefix[:-1] or 'the file'} holds {described(values)}, expected a JSON object"
            )
        self.values: Mapping[str, Any] = values
        self.where = where
        self.prefix = prefix
        self.read: set[str] = set()

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise the error of a missing key or an unacceptable value.

        Raises:
            QwenImageError: always.
        """
        found = described(self.values.get(key, MISSING))
        raise QwenImageError(f"{self._place(key)} is {found}, expected {expected}")

    def get(self, key: str) -> Any:
        """Return the unchecked value of a key, or `MISSING`."""
        self.read.add(key)
        return self.values.get(key, MISSING)

    def take(self, key: str, check: Check) -> Any:
        """Return the value of a required key after `check`.

        Raises:
            QwenImageError: the key is missing, or the value does not pass `check`.
        """
        value = self.get(key)
        check(value, self._place(key))
        return value

    def expect(self, key: str, *accepted: Any, why: str = "") -> None:
        """Raise if the value of a key is not one of `accepted`.

        Raises:
            QwenImageError: the key is missing or has another value.
        """
        found = self.get(key)
        if not any(type(found) is type(value) and found == value for value in accepted):
            choices = " or ".join(described(value) for value in accepted)
            self.refuse(key, choices + (f" ({why})" if why else ""))

    def integer(self, key: str) -> int:
        """Return a positive integer. JSON's true and 3.0 are refused."""
        return int(self.take(key, leaf("a positive integer", is_count)))

    def number(self, key: str) -> float:
        """Return a positive finite number."""
        return float(self.take(key, leaf("a positive number", lambda value: is_number(value) and value > 0)))

    def integers(self, key: str, length: int | None = None) -> tuple[int, ...]:
        """Return a non-empty list of positive integers, of `length` items if given."""
        expected = f"a list of {length or 'one or more'} positive integers"
        return tuple(self.take(key, leaf(expected, lambda value: is_list_of(value, is_count, length))))

    def places(self, key: str) -> tuple[int, ...]:
        """Return a list of rising indices, 0 or more. The list may be empty."""
        rising = leaf(
            "a list of rising whole numbers from 0",
            lambda value: value == [] or (is_list_of(value, is_whole) and sorted(set(value)) == value),
        )
        return tuple(self.take(key, rising))

    def numbers(self, key: str, length: int, expected: str) -> tuple[float, ...]:
        """Return a list of `length` finite numbers."""
        found = self.take(key, leaf(expected, lambda value: is_list_of(value, is_number, length)))
        return tuple(float(value) for value in found)

    def booleans(self, key: str, length: int, expected: str) -> tuple[bool, ...]:
        """Return a list of `length` booleans."""
        is_truth = leaf(expected, lambda value: is_list_of(value, lambda item: isinstance(item, bool), length))
        return tuple(self.take(key, is_truth))

    def section(self, key: str) -> Reader:
        """Return the reader of a nested object."""
        values = self.take(key, leaf("a JSON object", lambda value: isinstance(value, Mapping)))
        return Reader(values, self.where, f"{self.prefix}{key}.")

    def ignored(self) -> tuple[str, ...]:
        """Return the paths of the keys that were never read, sorted."""
        return tuple(sorted(self.prefix + key for key in self.values if key not in self.read))

    def _place(self, key: str) -> str:
        return f"{self.where}: key {self.prefix + key!r}"
