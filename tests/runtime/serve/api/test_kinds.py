"""Kinds of values: the schema that says what a check takes, and the nearest sizes."""

from typing import Any

import hypothesis
import jsonschema_rs
import pytest
from hypothesis import strategies

from qwen_image_engine.runtime.serve.api.errors import ApiError
from qwen_image_engine.runtime.serve.api.kinds import (
    Choice,
    Kind,
    Number,
    Sigmas,
    Size,
    Text,
    Truth,
    Whole,
    nearest_sizes,
)

KINDS = [
    Text(3),
    Choice(("a", "b")),
    Whole(-1, 10),
    Number(1.0, 2.5),
    Truth(),
    Sigmas(("karras",), 3),
    Size(2**20, 1024),
]
LEAVES = (
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-3, 12)
    | strategies.integers()
    | strategies.floats(allow_nan=False, allow_infinity=False)
    | strategies.floats(0, 3)
    | strategies.text(max_size=4)
    | strategies.sampled_from(["a", "karras", "auto", "64x64", "100x64", "064x64", "64x64\n", "6٤x64"])
)
VALUES = LEAVES | strategies.lists(LEAVES, max_size=4) | strategies.dictionaries(strategies.text(max_size=1), LEAVES)


@pytest.fixture(scope="module")
def values() -> list[Any]:
    """The same 300 values for every kind."""
    found: list[Any] = []

    @hypothesis.given(VALUES)
    @hypothesis.settings(max_examples=300, derandomize=True, deadline=None, database=None)
    def keep(value: Any) -> None:
        found.append(value)

    keep()
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_what_is_taken_fits_the_schema(kind: Kind, values: list[Any]) -> None:
    validator = jsonschema_rs.Draft202012Validator(kind.schema())
    assert len(values) >= 300
    for value in values:
        refused: ApiError | None = None
        try:
            kind.check("field", value)
        except ApiError as error:
            refused = error
        if refused is None:
            assert validator.is_valid(value), value
            continue
        assert (refused.status, refused.param) == (400, "field")
        assert "'field'" in refused.message
        # What a schema allows may be refused: multiples of 32 and falling numbers are no schema's to say. A whole
        # number written as a fraction, 3.0, is one for a schema.
        assert isinstance(kind, Size | Sigmas | Whole) or not validator.is_valid(value), value


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Whole(0, 9), "7", 7),
        (Whole(0, 9), "7.5", 7.5),
        (Whole(0, 9), "seven", "seven"),
        (Number(0, 9), "1e0", 1.0),
        (Truth(), "true", True),
        (Truth(), "False", False),
        (Truth(), "yes", "yes"),
        (Sigmas(("karras",), 3), "karras", "karras"),
        (Sigmas(("karras",), 3), "[1, 0.5]", [1, 0.5]),
        (Text(9), "7", "7"),
    ],
)
def test_texts_of_forms(kind: Kind, text: str, value: Any) -> None:
    assert kind.from_text(text) == value


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ((64, 96), [(64, 96)]),
        ((65, 96), [(64, 96), (96, 96)]),
        ((95, 100), [(96, 96), (96, 128)]),
        ((1000, 600), [(992, 608), (992, 576)]),
        ((1, 1), [(32, 32)]),
        ((10, 70), [(32, 64), (32, 96)]),
    ],
)
def test_nearest_sizes(size: tuple[int, int], nearest: list[tuple[int, int]]) -> None:
    assert nearest_sizes(*size) == nearest
