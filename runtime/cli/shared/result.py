"""The return value of a verb: the document for `--json`, the lines for a person, the exit code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VerbResult:
    """The result of a verb.

    Attributes:
        document: document that `--json` prints, plain JSON.
        lines: lines for a person.
        exit_code: 0, or 1 if the verb ran and its finding is a failure.
    """

    document: Mapping[str, Any]
    lines: Sequence[str]
    exit_code: int = 0
