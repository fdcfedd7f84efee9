"""The pictures that a case ends in: the reference's, and a bundle's after its own trajectory from the same noise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DrawnCase:
    """The pictures of one case, drawn by the reference and by a bundle.

    Attributes:
        case: name of the request.
        reference: picture of the reference, a PNG.
        engine: picture of the bundle, a PNG; None if the bundle could not draw one.
        missing: reason why the bundle has no picture; "" if it has one.
    """

    case: str
    reference: bytes
    engine: bytes | None
    missing: str = ""
