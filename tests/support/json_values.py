"""JSON values that no reader may stumble over, put in the place of every value of a document."""

import copy
from collections.abc import Iterator
from itertools import islice, product
from typing import Any

_DEEP: list[Any] = []
for _ in range(300):
    _DEEP = [_DEEP]

NASTY: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    10**400,  # an integer that no float holds
    float("nan"),
    float("inf"),
    "",
    "two\nlines",
    "\ud800",  # JSON can spell half a character
    [],
    [0, [0]],
    [{}],
    _DEEP,
    {},
    {"\n": {"": None}},
)


def changed(document: Any, every: int = 1) -> Iterator[tuple[str, Any]]:
    """Give copies of a document with one value replaced by one of `NASTY`, or removed, and what was changed.

    What a change leaves alone is the document's own, so none of it may be written to.

    With `every` = n, one in n of these changes: prime to the number of values, so that each place meets other ones.
    """
    for path, value in islice(product(_paths(document), (*NASTY, ...)), 0, None, every):
        yield f"{path}: {str(value)[:40]!r}", _replaced(document, path, value)


def _replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    key, *inner = path
    other = copy.copy(document)
    if inner:
        other[key] = _replaced(document[key], tuple(inner), value)
    elif value is ...:
        del other[key]
    else:
        other[key] = value
    return other


def _paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from _paths(inner, (*before, key))
