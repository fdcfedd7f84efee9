"""The form that a JSON document has to have: small checks that combine, and name the place that is otherwise.

A check takes a value and its place, such as "cases[0].runs[1].rounds", and raises `Misshapen` in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any, str], None]

_SHOWN = 60


class Misshapen(ValueError):
    """A place in a document, what stands there and what is expected."""


def described(value: object) -> str:
    """A value in JSON's words, short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= _SHOWN else f'"{value[:_SHOWN]}…"'
    return str(value)


def leaf(expected: str, test: Callable[[Any], bool]) -> Check:
    """A value that passes `test`."""

    def check(value: Any, place: str) -> None:
        if not test(value):
            raise Misshapen(f"{place} is {described(value)}, expected {expected}")

    return check


def is_number(value: object) -> bool:
    """A finite number; JSON's true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> bool:
    """A whole number that is not negative."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


ANYTHING = leaf("anything", lambda value: True)
TEXT = leaf("a text", lambda value: isinstance(value, str))
TRUTH = leaf("true or false", lambda value: isinstance(value, bool))
NUMBER = leaf("a finite number", is_number)
POSITIVE = leaf("a finite number above 0", lambda value: is_number(value) and value > 0)
NOT_NEGATIVE = leaf("a finite number, 0 or more", lambda value: is_number(value) and value >= 0)
WHOLE = leaf("a whole number, 0 or more", is_whole)
COUNT = leaf("a whole number above 0", lambda value: is_whole(value) and value > 0)
SHARE = leaf("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)


def optional(check: Check) -> Check:
    """What `check` takes, or null."""

    def either(value: Any, place: str) -> None:
        if value is not None:
            check(value, place)

    return either


def many(item: Check, least: int = 1) -> Check:
    """A list of at least `least`."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list) or len(value) < least:
            raise Misshapen(f"{place} is {described(value)}, expected a list{' of one or more' if least else ''}")
        for index, found in enumerate(value):
            item(found, f"{place}[{index}]")

    return check


def named(item: Check, names: tuple[str, ...] | None = None) -> Check:
    """An object with any keys, or any of `names`, and one kind of value."""

    def check(value: Any, place: str) -> None:
        for key, found in _object(value, place).items():
            if names is not None and key not in names:
                raise Misshapen(f'{place} has the unknown key "{key}", expected some of {", ".join(names)}')
            item(found, f"{place}.{key}")

    return check


def record(fields: Mapping[str, Check], extra: Mapping[str, Check] | None = None, *, closed: bool = False) -> Check:
    """An object with the keys of `fields`, perhaps those of `extra`, and where it is `closed` no others."""

    def check(value: Any, place: str) -> None:
        found = _object(value, place)
        prefix = f"{place}." if place else ""
        for key in fields:
            if key not in found:
                raise Misshapen(f"{prefix}{key} is missing")
        known = {**fields, **(extra or {})}
        for key, own in found.items():
            if key in known:
                known[key](own, f"{prefix}{key}")
            elif closed:
                raise Misshapen(f"{prefix}{key} is no key that this version knows")

    return check


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Misshapen(f"{place or 'it'} is {described(value)}, expected an object")
    return value
