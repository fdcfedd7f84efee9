"""The result of a comparison: figures in both files, and the change of each figure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

VERIFY = "qwen-image-verify"


VERIFY_SCHEMA = 1


PICTURES = "qwen-image-pictures"


PICTURES_SCHEMA = 1


FORMAT = "qwen-image-compare"


SCHEMA = 1


Kind = Literal["bench", "verify", "pictures"]


Change = Literal["faster", "slower", "smaller", "larger", "closer", "worse", "same", "unclear"]


FAILING: tuple[Change, ...] = ("slower", "worse")
"""Changes that make a script fail. More memory is reported but is no failure, because faster engines may need it."""


@dataclass(frozen=True)
class ChangedRow:
    """A figure that both results have.

    Attributes:
        where: case and contender, or bundle and component.
        what: a stage, "peak memory", "disk", the case of a component, a measure of pictures, or a limit.
        before: seconds, bytes or the number of a measure in the first result; None if the number was not finite.
        after: seconds, bytes or the number of a measure in the second result; None if the number was not finite.
        unit: "s", "bytes", the heading of a measure ("relative L2"), "dB" and "FLIP" of pictures, "accepted" for shares
            of them, or "passed" for figures of 1.0 and 0.0.
        ratio: factor by which the second result is better, above 1 if it is faster, smaller or closer; None if there
            are too few samples or a figure is zero.
        low: lower end of the ratio's confidence interval, widened by the margin by which two runs of one code differ;
            None if the figure has no samples.
        high: upper end of the same interval; None if the figure has no samples.
        change: change from the first to the second result beyond the noise.
        reason: reason why the change is unclear; "" if it is clear.
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
    """The figures that both results have, and the figures that are missing in the second result.

    Attributes:
        kind: kind of the two results.
        test: description of the test that decides.
        rows: figures in the order of the first result.
        notes: differences that make the results hard to compare: machines, checkpoints, versions, and figures that the
            first result does not have.
        lost: cases of a contender, or rows of a bundle, that only the first result has.
    """

    kind: Kind
    test: str
    rows: tuple[ChangedRow, ...]
    notes: tuple[str, ...]
    lost: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether a figure is slower or worse beyond the noise, or is missing in the second result."""
        return bool(self.lost) or any(row.change in FAILING for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain JSON."""
        return {"format": FORMAT, "schema": SCHEMA, "failed": self.failed, **asdict(self)}
