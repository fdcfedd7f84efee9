import json
from dataclasses import asdict, dataclass

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.system.json_schema import (
    ANYTHING,
    COUNT,
    MISSING,
    NOT_NEGATIVE,
    NUMBER,
    OBJECT,
    POSITIVE,
    SHARE,
    TEXT,
    TRUTH,
    WHOLE,
    Check,
    Reader,
    SchemaError,
    described,
    fields_of,
    leaf,
    many,
    named,
    optional,
    record,
)
from tests.support.json_values import NASTY, changed


@dataclass(frozen=True)
class Inner:
    name: str
    share: float | None = None


@dataclass(frozen=True)
class Outer:
    count: int
    sizes: tuple[int, ...]
    inner: Inner
    on: bool = False


OUTER = fields_of(Outer, inner=fields_of(Inner))
DOCUMENT = json.loads(json.dumps(asdict(Outer(2, (1, 2), Inner("a")))))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (MISSING, "missing"),
        (None, "null"),
        (False, "false"),
        (3, "3"),
        (1e-5, "1e-05"),
        ("a", '"a"'),
        ('say "a"\n', '"say \\"a\\"\\n"'),
        ("x" * 100, f'"{"x" * 60}…"'),
        ([], "an empty list"),
        ([1, "a", None, [2], {}], '[1, "a", null, […], an empty object]'),
        (list(range(10**5)), "[0, 1, 2, 3, 4, 5, 6, 7, 8]"),
        ({}, "an empty object"),
        ({"a": 1}, "an object"),
        pytest.param(10**5000, "a number of thousands of digits", id="digits"),
    ],
)
def test_values_in_words(value: object, words: str) -> None:
    assert described(value) == words


@pytest.mark.parametrize(
    ("check", "value", "words"),
    [
        (NUMBER, True, "a.b is true, expected a finite number"),
        (NUMBER, float("inf"), "a.b is inf, expected a finite number"),
        (NUMBER, 10**400, "a.b is 1000000"),
        (POSITIVE, 0, "a.b is 0, expected a finite number above 0"),
        (WHOLE, 2.0, "a.b is 2.0, expected a whole number, 0 or more"),
        (COUNT, 0, "a.b is 0, expected a whole number above 0"),
        (SHARE, 1.5, "a.b is 1.5, expected a number from 0 to 1"),
        (TEXT, None, "a.b is null, expected a text"),
        (optional(TEXT), 1, "a.b is 1, expected a text"),
        (OBJECT, [1], "a.b is [1], expected an object"),
        (many(COUNT), [], "a.b is an empty list, expected a list of one or more"),
        (many(COUNT), [1, 0], "a.b[1] is 0, expected a whole number above 0"),
        (named(COUNT), {"c": "x"}, 'a.b.c is "x", expected a whole number above 0'),
        (named(COUNT, ("c", "d")), {"e": 1}, 'a.b has the unknown key "e", expected some of c, d'),
        (record({"c": COUNT}), {}, "a.b.c is missing"),
        (record({"c": COUNT}), 7, "a.b is 7, expected an object"),
        (record({}, {"c": COUNT}), {"c": 0}, "a.b.c is 0, expected a whole number above 0"),
        (record({}, closed=True), {"two\nlines": 1}, 'a.b."two\\nlines" is no key that this version knows'),
    ],
)
def test_errors_name_place_found_and_expected(check: Check, value: object, words: str) -> None:
    with pytest.raises(SchemaError) as raised:
        check(value, "a.b")
    assert str(raised.value).startswith(words)
    assert "\n" not in str(raised.value)


def test_what_is_as_expected_passes() -> None:
    optional(TEXT)(None, "a")
    many(COUNT, least=0)([], "a")
    many(COUNT)([1, 2], "a")
    named(NUMBER)({"b": 1, "c": 1.5}, "a")
    record({"b": TRUTH}, {"c": TEXT})({"b": True, "other": 1}, "a")
    OUTER(DOCUMENT, "")


def test_the_schema_of_a_dataclass() -> None:
    OUTER({"count": 2, "sizes": [], "inner": {"name": "a"}}, "")
    for change, words in (
        ({"count": -1}, "count is -1, expected a whole number, 0 or more"),
        ({"sizes": [1, "2"]}, 'sizes[1] is "2"'),
        ({"inner": {"name": "a", "share": "b"}}, 'inner.share is "b", expected a finite number'),
        ({"inner": {}}, "inner.name is missing"),
        ({"colour": 1}, "colour is no key that this version knows"),
    ):
        with pytest.raises(SchemaError) as raised:
            OUTER(DOCUMENT | change, "")
        assert str(raised.value).startswith(words)


@pytest.mark.parametrize(
    "check",
    [
        ANYTHING,
        TEXT,
        TRUTH,
        NUMBER,
        POSITIVE,
        NOT_NEGATIVE,
        WHOLE,
        COUNT,
        SHARE,
        OBJECT,
        many(NUMBER),
        named(TEXT),
        OUTER,
    ],
)
def test_checks_raise_nothing_else(check: Check) -> None:
    for value in (*NASTY, *(document for _, document in changed(DOCUMENT))):
        try:
            check(value, "a")
        except SchemaError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_a_reader_names_file_and_key() -> None:
    reader = Reader({"a": {"b": 0, "c": [1, 2], "d": 1}, "e": 1}, "x.json")
    section = reader.section("a")
    assert section.integers("c", 2) == (1, 2)
    with pytest.raises(QwenImageError, match=r"^x\.json: key 'a\.b' is 0, expected a positive integer$"):
        section.integer("b")
    with pytest.raises(QwenImageError, match=r"^x\.json: key 'f' is missing, expected a positive number$"):
        reader.number("f")
    with pytest.raises(QwenImageError, match=r"^x\.json: key 'e' is 1, expected 2 or \"two\" \(why\)$"):
        reader.expect("e", 2, "two", why="why")
    assert (reader.ignored(), section.ignored()) == ((), ("a.d",))
    with pytest.raises(QwenImageError, match=r"^x\.json: the file holds null, expected a JSON object$"):
        Reader(None, "x.json")


def test_a_reader_raises_nothing_else() -> None:
    unequal = leaf("nothing", lambda value: False)
    for value in NASTY:
        reader = Reader({"a": value}, "x.json")
        for read in (
            reader.integer,
            reader.number,
            reader.integers,
            reader.places,
            reader.section,
            lambda key, reader=reader: reader.numbers(key, 2, "2 numbers"),
            lambda key, reader=reader: reader.booleans(key, 2, "2 booleans"),
            lambda key, reader=reader: reader.expect(key, 1, [1], "a", None),
            lambda key, reader=reader: reader.take(key, unequal),
        ):
            try:
                read("a")
            except QwenImageError as error:
                assert "\n" not in str(error)  # noqa: PT017
