"""Hashes of weights in a file, against the bytes in memory."""

import hashlib
from pathlib import Path

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.plans.bound_weight import BoundWeight, WeightPiece
from qwen_image_engine.runtime.tools.build.weight_hashes import WeightHashes

BYTES = bytes(range(256)) * 8192  # two pieces


def weight(name: str, offset: int, *shape: int) -> BoundWeight:
    return BoundWeight.of("int8", [WeightPiece(name, shape, "weights", offset, "")])


def test_each_place_is_hashed_once(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(BYTES)
    hashes, said = WeightHashes(tmp_path), []
    weights = (weight("all", 0, 2, 1 << 20), weight("part", 7, 3, 5), weight("again", 7, 5, 3))
    found = hashes.hashed(weights, said.append)
    assert [piece.sha256 for item in found for piece in item.pieces] == [
        hashlib.sha256(part).hexdigest() for part in (BYTES, BYTES[7:22], BYTES[7:22])
    ]
    assert [item.name for item in found] == ["all", "part", "again"]
    assert len(said) == 2
    (tmp_path / "weights").unlink()
    assert hashes.hashed(weights[1:]) == found[1:]


def test_a_file_that_is_short_or_gone(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(BYTES)
    with pytest.raises(QwenImageError, match=r"weights: ends 3 bytes before a weight at byte 2097150 does"):
        WeightHashes(tmp_path).hashed([weight("late", len(BYTES) - 2, 5, 1)])
    (tmp_path / "weights").unlink()
    with pytest.raises(QwenImageError, match="weights: cannot be read"):
        WeightHashes(tmp_path).hashed([weight("gone", 0, 2, 2)])
