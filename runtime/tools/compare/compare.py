"""The comparison of two result files of `bench`, `verify` or `verify --pictures`: differences beyond the noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.engines.core.files import read_regular
from qwen_image_engine.runtime.system.json_schema import MAX_JSON_BYTES, SchemaError, described, parse
from qwen_image_engine.runtime.tools.bench.result import FORMAT as BENCH
from qwen_image_engine.runtime.tools.bench.result import SCHEMA as BENCH_SCHEMA
from qwen_image_engine.runtime.tools.compare.result import (
    PICTURES,
    PICTURES_SCHEMA,
    VERIFY,
    VERIFY_SCHEMA,
    Comparison,
    Kind,
)

_VERBS = {"bench": "bench", "verify": "verify", "pictures": "verify --pictures"}
"""Commands that write results, by kind."""


def compare(first: Path, second: Path) -> Comparison:
    """Compare two files that `--output` wrote, the older file first.

    A script can tell the error from a regression.

    Raises:
        UsageError: a file cannot be read, is not a result of `bench` or `verify`, has another schema version, or is not
            in the expected format; one file is a result of `bench` and the other of `verify`; or the two files have no
            figure in common.
    """
    from qwen_image_engine.runtime.tools.compare.bench import compare_bench
    from qwen_image_engine.runtime.tools.compare.pictures import compare_pictures
    from qwen_image_engine.runtime.tools.compare.schemas import FORMS
    from qwen_image_engine.runtime.tools.compare.verify import compare_verify

    (kind, before), (other, after) = read_result(first), read_result(second)
    if kind != other:
        raise UsageError(f"{first} is of {_VERBS[kind]} and {second} of {_VERBS[other]}: compare two of one kind")
    for path, document in ((first, before), (second, after)):
        try:
            FORMS[kind](document, "")
        except SchemaError as error:
            raise UsageError(
                f"{path}: not in the expected format: {error}; run qwen-image {_VERBS[kind]} again"
            ) from None
    compared = {"bench": compare_bench, "verify": compare_verify, "pictures": compare_pictures}
    found = compared[kind](before, after)
    if not found.rows:
        notes = "".join(f"; {note}" for note in found.notes)
        raise UsageError(
            f"{first} and {second} have no figure in common{notes}; run {_VERBS[kind]} with the same arguments"
        )
    return found


def read_result(path: Path) -> tuple[Kind, Mapping[str, Any]]:
    """Read a result file, and return its kind and the JSON object in it.

    Raises:
        UsageError: the file cannot be read, is not regular, is not JSON, is not a result of `bench` or `verify`, or has
            another schema version.
    """
    try:
        data = parse(read_regular(path, MAX_JSON_BYTES))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except SchemaError as error:
        raise UsageError(f"{path} is {error}") from error
    found = data if isinstance(data, dict) else {}
    if found.get("format") == BENCH:
        _check_schema(path, found.get("schema"), BENCH_SCHEMA, "bench")
        return "bench", found
    if found.get("format") == VERIFY:
        _check_schema(path, found.get("schema"), VERIFY_SCHEMA, "verify")
        return "verify", found
    if found.get("format") == PICTURES:
        _check_schema(path, found.get("schema"), PICTURES_SCHEMA, "verify --pictures")
        return "pictures", found
    if "format" not in found and {"passed", "components"} <= found.keys():
        return "verify", found  # as verify wrote it before it named its format
    raise UsageError(
        f'{path} is no result of bench or verify: its "format" is {described(found.get("format"))}, expected '
        f"{BENCH!r}, {VERIFY!r} or {PICTURES!r}; write one with: qwen-image bench BUNDLE --output RESULT.json"
    )


def _check_schema(path: Path, found: object, expected: int, verb: str) -> None:
    if found != expected:
        raise UsageError(
            f"{path}: schema version {described(found)}, this version reads {expected}; run qwen-image {verb} again "
            "with this version, or compare with the version that wrote it"
        )
