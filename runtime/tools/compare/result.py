"""The result of a comparison: figures in both files, and the change of each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

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
        before: seconds, bytes or a measure of the first result; None if that was not finite.
        after: of the second.
        unit: "s", "bytes", the heading of a measure ("relative L2"), or "passed" of 1.0 and 0.0.
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
