"""The SHA-256 of the weights that plans take as inputs, each computed once for all plans of a build."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import open_regular
from qwen_image_engine.engines.plans.bound_weight import BoundWeight, WeightPiece
from qwen_image_engine.runtime.system.machine import usable_cores

_PIECE_BYTES = 1 << 20

_Place = tuple[str, int, int]
"""File, offset and length."""


class WeightHashes:
    """The hashes of the weights of one bundle.

    Files are read in pieces, so that a hash needs no memory to speak of. Threads share the weights: 1.3 GB/s on each
    core with instructions for SHA-256.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[_Place, str] = {}
        self._lock = Lock()

    def hashed(
        self, weights: Sequence[BoundWeight], watch: Callable[[str], None] = lambda words: None
    ) -> tuple[BoundWeight, ...]:
        """Return `weights` with their SHA-256. `watch` is called with the current work, for each weight.

        Raises:
            QwenImageError: a file cannot be read, or ends before a weight does.
        """
        places = (_place(weight, piece) for weight in weights for piece in weight.pieces)
        with self._lock:  # builds side by side have mostly the same weights
            self._add(dict.fromkeys(place for place in places if place not in self._known), watch)
        return tuple(
            replace(
                weight,
                pieces=tuple(replace(piece, sha256=self._known[_place(weight, piece)]) for piece in weight.pieces),
            )
            for weight in weights
        )

    def _add(self, places: Collection[_Place], watch: Callable[[str], None]) -> None:
        pool = ThreadPoolExecutor(usable_cores())
        try:
            for place, digest in zip(places, pool.map(self._hash, places), strict=True):
                self._known[place] = digest
                watch(f"hashing weights {len(self._known)}")
        finally:
            pool.shutdown(cancel_futures=True)

    def _hash(self, place: _Place) -> str:
        name, offset, left = place
        path, digest, piece = self._folder / name, hashlib.sha256(), memoryview(bytearray(min(left, _PIECE_BYTES)))
        try:
            with open_regular(path) as file:
                file.seek(offset)
                while left:
                    read = file.readinto(piece[:left])
                    if not read:
                        raise QwenImageError(
                            f"{path}: ends {left} bytes before a weight at byte {offset} does; get the bundle again"
                        )
                    digest.update(piece[:read])
                    left -= read
        except OSError as error:
            raise QwenImageError(f"{path}: cannot be read ({error.strerror or error})") from error
        return digest.hexdigest()


def _place(weight: BoundWeight, piece: WeightPiece) -> _Place:
    return piece.file, piece.offset, weight.nbytes(piece)
