"""One copy of each weight on a device that is played, as long as somebody holds it."""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError
from qwen_image_engine.engines.cuda.file_upload import FilePart
from qwen_image_engine.engines.cuda.memory import CudaContext
from qwen_image_engine.engines.cuda.shared_weights import SharedWeights, room_bytes
from qwen_image_engine.engines.cuda.stream import CudaStream
from tests.support.fake_cuda import FakeDriver


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def shared(driver: FakeDriver) -> SharedWeights:
    played: Any = driver
    return SharedWeights(CudaStream(CudaContext(played, ctypes.c_void_p(1))))


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, FilePart]:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(bytes(range(200)))

    def part(name: str, offset: int, nbytes: int) -> FilePart:
        digest = hashlib.sha256(bytes(range(offset, offset + nbytes))).hexdigest()
        return FilePart(path, offset, nbytes, digest, name, "export again")

    return {"a": part("a", 10, 50), "b": part("b", 60, 70), "tied": part("tied", 10, 50)}


def test_the_same_place_has_one_copy(shared: SharedWeights, driver: FakeDriver, parts: dict[str, FilePart]) -> None:
    assert shared.missing(parts.values()) == list(parts.values())
    assert room_bytes(parts.values()) == 1024
    taken = shared.take(parts)
    assert taken["a"].address == taken["tied"].address
    assert all(array.address % 512 == 0 for array in taken.values())
    assert driver.view(taken["b"].address, 70).tolist() == list(range(60, 130))
    assert shared.missing(parts.values()) == []
    again = shared.take({"b": parts["b"]})
    assert driver.calls["cuMemAlloc_v2"] == 1
    del taken
    assert shared.missing(parts.values()) == [parts["a"], parts["tied"]]
    del again
    assert driver.free_bytes == driver.total_bytes


def test_nothing_takes_nothing(shared: SharedWeights, driver: FakeDriver) -> None:
    assert shared.take({}) == {}
    assert driver.calls["cuMemAlloc_v2"] == driver.calls["cuMemHostAlloc"] == 0


def test_what_was_not_checked_is_given_to_nobody(
    shared: SharedWeights, driver: FakeDriver, parts: dict[str, FilePart]
) -> None:
    wrong = {**parts, "b": replace(parts["b"], sha256="0" * 64)}
    with pytest.raises(QwenImageError, match=r"others than their SHA-256 says, .* weight b; export again$"):
        shared.take(wrong)
    assert shared.missing(parts.values()) == list(parts.values())
    assert len(shared.take(parts)) == 3


def test_sizes_are_checked_before_an_upload(
    shared: SharedWeights, driver: FakeDriver, parts: dict[str, FilePart], tmp_path: Path
) -> None:
    with pytest.raises(
        QwenImageError, match=r"it holds 200 bytes, expected 205 at least, .* the weight b; export again"
    ):
        shared.take({**parts, "b": replace(parts["b"], offset=135)})
    with pytest.raises(QwenImageError, match=r"none: it cannot be read \(No such file .*\), .* the weight b; export"):
        shared.take({**parts, "b": replace(parts["b"], path=tmp_path / "none")})
    with pytest.raises(QwenImageError, match=r"cannot be read \(Is a directory\), .* the weight b; export again"):
        shared.take({**parts, "b": replace(parts["b"], path=tmp_path)})
    assert driver.calls["cuMemAlloc_v2"] == driver.calls["cuMemHostAlloc"] == 0


def test_no_room_is_told_as_such(shared: SharedWeights, driver: FakeDriver, parts: dict[str, FilePart]) -> None:
    driver.total_bytes = 1000
    with pytest.raises(
        OutOfDeviceMemory, match=r"^weights take 1024 bytes and 1000 bytes of .* 24 are missing; run with"
    ):
        shared.take(parts)
