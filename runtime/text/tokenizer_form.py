"""The form of a tokenizer file: Qwen3-VL's. The tokenizers library would run any other that a file asks for.

A pattern can backtrack without end, a normaliser can double its text forty times, and a dropout draws another picture
each time. The vocabulary, the merges and the added tokens are free, within limits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from qwen_image_engine.runtime.system.json_schema import (
    OBJECT,
    TEXT,
    TRUTH,
    WHOLE,
    Check,
    SchemaError,
    described,
    leaf,
    many,
    optional,
    record,
)

MAX_BYTES = 16 << 20
"""Largest file [bytes]. Released files have 7 to 11 MB, and Python's objects of one take up to 25 times as much."""

MAX_ADDED_TOKENS = 1024
MAX_ADDED_LENGTH = 64
"""Limits of the added tokens, which have 26 and 21 [characters] in released files.

The library searches for them with an automaton whose table has up to 1 kB for each of their bytes.
"""

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pattern of the words: `PRETOKENIZE_REGEX` of transformers' `Qwen2Tokenizer`."""


def parse(text: str) -> Any:
    """Parse the text of a tokenizer file.

    Raises:
        SchemaError: the text is not JSON, is nested too deeply, or an object in it has a key twice, of which the
            library may take the other.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"it is not JSON ({error})") from error


def check_form(document: Any) -> None:
    """Raise if a parsed tokenizer file is not in Qwen3-VL's form.

    Raises:
        SchemaError: a key is missing, unknown, or has another value than exports hold.
    """
    _FORM(document, "")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise SchemaError(f"the key {described(next(key for key in found if keys.count(key) > 1))} is there twice")
    return found


def _constant(*accepted: Any) -> Check:
    expected = " or ".join(map(described, accepted))
    return leaf(expected, lambda value: any(type(value) is type(item) and value == item for item in accepted))


def _vocabulary(value: Any, place: str) -> None:
    leaf(
        "an object of token ids",
        lambda value: isinstance(value, Mapping) and all(type(item) is int and item >= 0 for item in value.values()),
    )(value, place)
    missing = [letter for letter in ByteLevel.alphabet() if letter not in value]
    if missing:  # without an unknown token the library leaves such a byte out
        raise SchemaError(f"{place} lacks {len(missing)} of the 256 letters that stand for bytes")


def _are_merges(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_merge, value))


def _is_merge(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], str)
    return isinstance(value, str)  # "a b", as files had it until 2024


def _pre_tokenizers(value: Any, place: str) -> None:
    leaf("a list of Split and ByteLevel", lambda value: isinstance(value, list) and len(value) == 2)(value, place)
    for index, check in enumerate((_SPLIT, _BYTES)):
        check(value[index], f"{place}[{index}]")


def _added_tokens(value: Any, place: str) -> None:
    leaf(
        f"a list of at most {MAX_ADDED_TOKENS} tokens",
        lambda value: isinstance(value, list) and len(value) <= MAX_ADDED_TOKENS,
    )(value, place)
    many(_ADDED, least=0)(value, place)


def _post_processor(value: Any, place: str) -> None:
    if value != _NOTHING_ADDED:
        optional(_BYTES_AFTER)(value, place)


_TURNED_OFF = optional(OBJECT)

_ADDED = record(
    {
        "id": WHOLE,
        "content": leaf(
            f"a text of 1 to {MAX_ADDED_LENGTH} characters",
            lambda value: isinstance(value, str) and 1 <= len(value) <= MAX_ADDED_LENGTH,
        ),
        **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), TRUTH),
    },
    closed=True,
)

_SPLIT = record(
    {
        "type": _constant("Split"),
        "pattern": record({"Regex": leaf("the pattern of Qwen2's words", lambda value: value == PATTERN)}, closed=True),
        "behavior": _constant("Isolated"),
        "invert": _constant(False),
    },
    closed=True,
)

_BYTES = record(
    {"type": _constant("ByteLevel"), "add_prefix_space": _constant(False), "use_regex": _constant(False)},
    {"trim_offsets": TRUTH},
    closed=True,
)

# They change offsets and texts, of which none is used, and no id.
_BYTES_AFTER = record(
    {"type": _constant("ByteLevel")},
    dict.fromkeys(("add_prefix_space", "trim_offsets", "use_regex"), TRUTH),
    closed=True,
)

# transformers 5 writes it where there is no post-processor. Others add tokens.
_NOTHING_ADDED = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}

_MODEL = record(
    {
        "type": _constant("BPE"),
        "vocab": _vocabulary,
        "merges": leaf("a list of pairs of tokens", _are_merges),
    },
    {
        **dict.fromkeys(("dropout", "unk_token"), _constant(None)),
        **dict.fromkeys(("continuing_subword_prefix", "end_of_word_suffix"), _constant(None, "")),
        **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), _constant(False)),
    },
    closed=True,
)

_FORM = record(
    {
        "added_tokens": _added_tokens,
        "normalizer": record({"type": _constant("NFC")}, closed=True),
        "pre_tokenizer": record({"type": _constant("Sequence"), "pretokenizers": _pre_tokenizers}, closed=True),
        "decoder": _BYTES_AFTER,
        "model": _MODEL,
    },
    {"version": TEXT, "truncation": _TURNED_OFF, "padding": _TURNED_OFF, "post_processor": _post_processor},
    closed=True,
)
