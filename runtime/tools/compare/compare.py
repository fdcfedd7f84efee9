"""What differs between two results of `bench`, or two of `verify`, beyond the noise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.system.json_schema import Misshapen
from qwen_image_engine.runtime.tools.bench.result import FORMAT as BENCH
from qwen_image_engine.runtime.tools.bench.result import SCHEMA as BENCH_SCHEMA

VERIFY = "qwen-image-verify"
VERIFY_SCHEMA = 1
FORMAT = "qwen-image-compare"
SCHEMA = 1

Change = Literal["faster", "slower", "smaller", "larger", "closer", "worse", "same", "unclear"]

FAILING: tuple[Change, ...] = ("slower", "worse")
"""What a script stops at. More memory is told and is no failure: faster engines may well take it."""


@dataclass(frozen=True)
class ChangedRow:
    """One figure in both results.

    Attributes:
        where: case and way, or bundle and component.
        what: a stage, "peak memory", "disk", the case of a component, or a limit.
        before: seconds, bytes or relative L2 of the first result; None where that was not finite.
        after: of the second.
        unit: "s", "bytes", "relative L2", or "passed" of 1.0 and 0.0.
        ratio: how many times better the second is, above 1 where it is faster, smaller or closer; None where too few
            samples or a zero allow none.
        low: end of the ratio's interval, of times with what two runs of one code differ by in it; None of what has no
            samples.
        high: likewise.
        change: from the first to the second, beyond the noise.
        reason: why it is unclear, "" where it is not.
    """

    where: str
    what: str
    before: float | None
    after: float | None
    unit: str
    ratio: float | None
    low: float | None
    high: float | None
    change: Change
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """Every figure that both results have, and what the second has lost.

    Attributes:
        kind: "bench" or "verify".
        test: in words, what decides.
        rows: in the order of the first result.
        notes: what makes the two hard to compare: machines, checkpoints, versions, figures that the first lacks.
        lost: cases of a way, or rows of a bundle, that only the first result has.
    """

    kind: Literal["bench", "verify"]
    test: str
    rows: tuple[ChangedRow, ...]
    notes: tuple[str, ...]
    lost: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether something is slower or worse beyond the noise, or is not there any more."""
        return bool(self.lost) or any(row.change in FAILING for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"format": FORMAT, "schema": SCHEMA, "failed": self.failed, **asdict(self)}


def compare(first: Path, second: Path) -> Comparison:
    """Compare two files that `--output` wrote, the older one first.

    Raises:
        UsageError: a file cannot be read, is neither, is of another schema version or misshapen; one is of `bench` and
            the other of `verify`; or the two have nothing in common. A script tells that from a regression.
    """
    from qwen_image_engine.runtime.tools.compare.bench import compare_bench
    from qwen_image_engine.runtime.tools.compare.schemas import FORMS
    from qwen_image_engine.runtime.tools.compare.verify import compare_verify

    (kind, before), (other, after) = read_result(first), read_result(second)
    if kind != other:
        raise UsageError(f"{first} is of {kind} and {second} of {other}: compare two of one kind")
    for path, document in ((first, before), (second, after)):
        try:
            FORMS[kind](document, "")
        except Misshapen as error:
            raise UsageError(f"{path}: misshapen: {error}; run qwen-image {kind} again") from None
    found = (compare_bench if kind == "bench" else compare_verify)(before, after)
    if not found.rows:
        notes = "".join(f"; {note}" for note in found.notes)
        raise UsageError(f"{first} and {second} have no figure in common{notes}; run {kind} with the same arguments")
    return found


def read_result(path: Path) -> tuple[Literal["bench", "verify"], Mapping[str, Any]]:
    """Which verb wrote a file, and the object in it.

    Raises:
        UsageError: it cannot be read, is no result of either, or of another schema version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({error})") from error
    found = data if isinstance(data, dict) else {}
    if found.get("format") == BENCH:
        _check_schema(path, found.get("schema"), BENCH_SCHEMA, "bench")
        return "bench", found
    if found.get("format") == VERIFY:
        _check_schema(path, found.get("schema"), VERIFY_SCHEMA, "verify")
        return "verify", found
    if "format" not in found and {"passed", "components"} <= found.keys():
        return "verify", found  # as verify wrote it before it named its format
    raise UsageError(
        f'{path} is no result of bench or verify: its "format" is {found.get("format")!r}, expected {BENCH!r} or '
        f"{VERIFY!r}; write one with: qwen-image bench BUNDLE --output {path}"
    )


def _check_schema(path: Path, found: object, expected: int, verb: str) -> None:
    if found != expected:
        raise UsageError(
            f"{path}: schema version {found!r}, this version reads {expected}; run qwen-image {verb} again with this "
            "version, or compare with the version that wrote it"
        )
