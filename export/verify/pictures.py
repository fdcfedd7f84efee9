"""The pictures that a case ends in, of the reference and of a bundle that goes its own way from the same noise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DrawnCase:
    """One case, drawn by both.

    Attributes:
        case: name of the request.
        reference: its picture, a PNG.
        engine: the bundle's, None where it could not draw one.
        missing: why, "" where it did.
    """

    case: str
    reference: bytes
    engine: bytes | None
    missing: str = ""
