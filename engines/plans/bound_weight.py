"""The weights that a plan takes as inputs: the plan holds none of them, and all plans of a bundle share one copy."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

from qwen_image_engine.engines.core.device_array import size_bytes
from qwen_image_engine.engines.core.graph.joined_products import JOINT


@dataclass(frozen=True)
class WeightPiece:
    """A weight of a graph, which is an input of a plan or the rows of one.

    Attributes:
        name: name of the initializer in the graph.
        shape: shape of the weight.
        file: name in `Manifest.files` of the file that holds the numbers.
        offset: offset of the weight's first byte in the file.
        sha256: SHA-256 of the weight's bytes.
    """

    name: str
    shape: tuple[int, ...]
    file: str
    offset: int
    sha256: str


@dataclass(frozen=True)
class BoundWeight:
    """An input of a plan for weights: for one, or for several whose bytes follow one another.

    Attributes:
        name: name of the plan's input: the names of the pieces, with "+" between them.
        dtype: dtype of the numbers, a name of `engines.core.dtypes`.
        shape: shape of all pieces together, which differ in the size of the first axis alone.
        pieces: weights of the graph, in order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[WeightPiece, ...]

    @classmethod
    def of(cls, dtype: str, pieces: Iterable[WeightPiece]) -> Self:
        """Return the input for these pieces."""
        found = tuple(pieces)
        name, rows = JOINT.join(piece.name for piece in found), sum(piece.shape[0] for piece in found if piece.shape)
        return cls(name, dtype, (rows, *found[0].shape[1:]) if found[0].shape else (), found)

    @property
    def is_consistent(self) -> bool:
        """Whether name and shape are those of the pieces, and whether the pieces can lie one behind the other."""
        is_whole = len(self.pieces) == 1
        alike = len({piece.shape[1:] for piece in self.pieces}) == 1 and all(piece.shape for piece in self.pieces)
        return (is_whole or alike) and self == self.of(self.dtype, self.pieces)

    @property
    def without_hash(self) -> Self:
        """The weight as a graph has it, which knows no hash."""
        return replace(self, pieces=tuple(replace(piece, sha256="") for piece in self.pieces))

    def nbytes(self, piece: WeightPiece) -> int:
        """Return the bytes of a piece."""
        return size_bytes(piece.shape, self.dtype)
