"""The weights that a plan takes as inputs: the plan holds none of them, and all plans of a bundle share one copy."""

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True)
class BoundWeight:
    """A weight that a plan takes as an input.

    Attributes:
        name: name of the plan's input, which is the initializer's name in the graph.
        dtype: dtype of the numbers, a name of `engines.core.dtypes`.
        shape: shape of the weight.
        file: name in `Manifest.files` of the file that holds the numbers.
        offset: offset of the weight's first byte in the file.
        sha256: SHA-256 of the weight's bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    sha256: str

    @property
    def without_hash(self) -> Self:
        """The weight as a graph has it, which knows no hash."""
        return replace(self, sha256="")
