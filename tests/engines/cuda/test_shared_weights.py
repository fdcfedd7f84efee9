"""One copy of each weight on a device that is played, as long as somebody holds it."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError
from qwen_image_engine.engines.cuda.file_upload import FilePart
from qwen_image_engine.engines.cuda.memory import CudaContext
from qwen_image_engine.engines.cuda.shared_weights import Parts, SharedWeights, room_bytes
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
def parts(tmp_path: Path) -> dict[str, Parts]:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(bytes(range(200)))

    def part(name: str, offset: int, nbytes: int) -> Parts:
        digest = hashlib.sha256(bytes(range(offset, offset + nbytes))).hexdigest()
        return (FilePart(path, offset, nbytes, digest, name, "export again"),)

    return {"a": part("a", 10, 50), "b": part("b", 60, 70), "tied": part("tied", 10, 50)}


def test_the_same_place_has_one_copy(shared: SharedWeights, driver: FakeDriver, parts: dict[str, Parts]) -> None:
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


class TestWeightsOfSeveralParts:
    @pytest.fixture
    def large(self, tmp_path: Path) -> Callable[..., Parts]:
        """`large(*numbers) -> parts`: of 1,024 bytes each, but for the last, of 100."""
        path = tmp_path / "large.safetensors"
        data = bytes(index * 7 % 251 for index in range(3172))
        path.write_bytes(data)

        def parts(*numbers: int) -> Parts:
            ranges = [(1024 * number, 100 if number == 3 else 1024) for number in numbers]
            digests = [hashlib.sha256(data[start:][:size]).hexdigest() for start, size in ranges]
            return tuple(
                FilePart(path, start, size, digest, f"part {start // 1024}", "export again")
                for (start, size), digest in zip(ranges, digests, strict=True)
            )

        return parts

    def test_they_lie_one_behind_the_other_whatever_their_order_in_the_file(
        self, shared: SharedWeights, driver: FakeDriver, large: Callable[..., Parts]
    ) -> None:
        weights = {"joint": large(2, 0, 3), "apart": large(1)}
        taken = shared.take(weights)
        data = weights["apart"][0].path.read_bytes()
        assert taken["joint"].nbytes == 2148
        found = bytes(driver.view(taken["joint"].address, 2148))
        assert found == data[2048:3072] + data[:1024] + data[3072:]
        assert room_bytes(weights.values()) == 2560 + 1024

    def test_a_part_alone_is_read_where_it_lies(
        self, shared: SharedWeights, driver: FakeDriver, large: Callable[..., Parts]
    ) -> None:
        joint = shared.take({"joint": large(0, 1)})["joint"]
        assert shared.missing([large(1), large(0, 1), large(1, 0)]) == [large(1, 0)]
        alone = shared.take({"alone": large(1)})["alone"]
        assert alone.address == joint.address + 1024
        assert driver.calls["cuMemAlloc_v2"] == 1
        del joint
        assert shared.missing([large(1), large(0), large(0, 1)]) == [large(0), large(0, 1)]
        assert bytes(driver.view(alone.address, 1024)) == large(1)[0].path.read_bytes()[1024:2048]
        del alone
        assert driver.free_bytes == driver.total_bytes

    def test_one_that_is_not_aligned_there_has_a_place_of_its_own(
        self, shared: SharedWeights, driver: FakeDriver, large: Callable[..., Parts]
    ) -> None:
        joint = shared.take({"joint": large(3, 1)})["joint"]
        assert shared.missing([large(3), large(1)]) == [large(1)]
        alone = shared.take({"alone": large(1)})["alone"]
        assert alone.address % 512 == 0
        assert bytes(driver.view(alone.address, 1024)) == bytes(driver.view(joint.address + 100, 1024))

    def test_a_joint_one_is_not_put_together_on_the_device(
        self, shared: SharedWeights, driver: FakeDriver, large: Callable[..., Parts]
    ) -> None:
        alone = shared.take({"alone": large(1)})["alone"]
        assert shared.missing([large(0, 1)]) == [large(0, 1)]
        joint = shared.take({"joint": large(0, 1)})["joint"]
        assert bytes(driver.view(joint.address + 1024, 1024)) == bytes(driver.view(alone.address, 1024))

    def test_a_wrong_part_is_named(self, shared: SharedWeights, large: Callable[..., Parts]) -> None:
        first, second = large(0, 1)
        with pytest.raises(QwenImageError, match=r"bytes 1024 and on are others than their SHA-256 says, .* part 1;"):
            shared.take({"joint": (first, replace(second, sha256="0" * 64))})
        assert shared.missing([(first,), (first, second)]) == [(first,), (first, second)]


def test_nothing_takes_nothing(shared: SharedWeights, driver: FakeDriver) -> None:
    assert shared.take({}) == {}
    assert driver.calls["cuMemAlloc_v2"] == driver.calls["cuMemHostAlloc"] == 0


def test_what_was_not_checked_is_given_to_nobody(
    shared: SharedWeights, driver: FakeDriver, parts: dict[str, Parts]
) -> None:
    wrong = {**parts, "b": (replace(*parts["b"], sha256="0" * 64),)}
    with pytest.raises(QwenImageError, match=r"others than their SHA-256 says, .* weight b; export again$"):
        shared.take(wrong)
    assert shared.missing(parts.values()) == list(parts.values())
    assert len(shared.take(parts)) == 3


def test_sizes_are_checked_before_an_upload(
    shared: SharedWeights, driver: FakeDriver, parts: dict[str, Parts], tmp_path: Path
) -> None:
    with pytest.raises(
        QwenImageError, match=r"it holds 200 bytes, expected 205 at least, .* the weight b; export again"
    ):
        shared.take({**parts, "b": (replace(*parts["b"], offset=135),)})
    with pytest.raises(QwenImageError, match=r"none: it cannot be read \(No such file .*\), .* the weight b; export"):
        shared.take({**parts, "b": (replace(*parts["b"], path=tmp_path / "none"),)})
    with pytest.raises(QwenImageError, match=r"cannot be read \(Is a directory\), .* the weight b; export again"):
        shared.take({**parts, "b": (replace(*parts["b"], path=tmp_path),)})
    assert driver.calls["cuMemAlloc_v2"] == driver.calls["cuMemHostAlloc"] == 0


def test_no_room_is_told_as_such(shared: SharedWeights, driver: FakeDriver, parts: dict[str, Parts]) -> None:
    driver.total_bytes = 1000
    with pytest.raises(
        OutOfDeviceMemory, match=r"^weights take 1024 bytes and 1000 bytes of .* 24 are missing; run with"
    ):
        shared.take(parts)
