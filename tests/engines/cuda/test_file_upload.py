"""Parts of files on their way to a device that is played: bytes, hashes, and files that do not hold them."""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_image_engine.engines.core.device_array import DeviceArray
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda import file_upload
from qwen_image_engine.engines.cuda.file_upload import FilePart, upload_parts
from qwen_image_engine.engines.cuda.memory import CudaContext, CudaMemory
from qwen_image_engine.engines.cuda.stream import CudaStream
from tests.support.fake_cuda import FakeDriver

SIZES = (1, 100, 4096, 4097, 3 * 4096, 20_000, 7, 0)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    monkeypatch.setattr(file_upload, "PIECE_BYTES", 4096)
    return FakeDriver()


@pytest.fixture
def stream(driver: FakeDriver) -> CudaStream:
    played: Any = driver
    return CudaStream(CudaContext(played, ctypes.c_void_p(1)))


@pytest.fixture
def parts(tmp_path: Path) -> list[FilePart]:
    path, found, offset = tmp_path / "weights.safetensors", [], 13
    data = np.random.default_rng(0).integers(0, 256, offset + sum(SIZES), np.uint8).tobytes()
    path.write_bytes(data)
    for size in SIZES:
        digest = hashlib.sha256(data[offset : offset + size]).hexdigest()
        found.append(FilePart(path, offset, size, digest, f"weight.{size}", "export again"))
        offset += size
    return found


def send(stream: CudaStream, parts: list[FilePart], unchecked: list[FilePart]) -> list[DeviceArray]:
    block = CudaMemory(stream.context, 1 + sum(SIZES))
    starts = np.cumsum([1, *SIZES])
    targets = [DeviceArray(block, (part.nbytes,), "uint8", int(at)) for part, at in zip(parts, starts, strict=False)]
    with FileIO(parts[0].path) as file:
        upload_parts(stream, parts, targets, {parts[0].path: file}, unchecked)
    return targets


@pytest.mark.parametrize("hashed", [True, False])
def test_bytes_arrive_in_pieces(stream: CudaStream, driver: FakeDriver, parts: list[FilePart], hashed: bool) -> None:
    targets = send(stream, parts, parts if hashed else [])
    for part, target in zip(parts, targets, strict=True):
        held = driver.view(target.address, part.nbytes).tobytes() if part.nbytes else b""
        assert hashlib.sha256(held).hexdigest() == part.sha256
    assert driver.calls["cuMemcpyHtoDAsync_v2"] == sum(-(-size // 4096) for size in SIZES)
    assert driver.calls["cuMemHostAlloc"] == driver.calls["cuMemFreeHost"] == 8


def test_few_bytes_take_little_page_locked_memory(
    stream: CudaStream, driver: FakeDriver, parts: list[FilePart]
) -> None:
    send(stream, parts[:1], parts)
    assert driver.calls["cuMemHostAlloc"] == 1
    send(stream, parts[-1:], parts)
    assert driver.calls["cuMemHostAlloc"] == 1


def test_other_bytes_are_told_by_tensor(stream: CudaStream, driver: FakeDriver, parts: list[FilePart]) -> None:
    wrong = [replace(part, sha256="0" * 64) if part.nbytes == 20_000 else part for part in parts]
    with pytest.raises(
        QwenImageError,
        match=r"^\S+: bytes \d+ and on are others than their SHA-256 says, and it should hold the weight weight.20000; "
        "export again$",
    ):
        send(stream, wrong, wrong)
    send(stream, wrong, [])  # checked before


def test_a_file_that_ends_early_is_told(stream: CudaStream, driver: FakeDriver, parts: list[FilePart]) -> None:
    with parts[0].path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(
        QwenImageError, match=r"became shorter while it was read, and it should hold the weight weight.4"
    ):
        send(stream, parts, parts)
    assert driver.queue == []  # nothing reads memory that is gone


def test_a_read_that_fails_is_told(
    stream: CudaStream, driver: FakeDriver, parts: list[FilePart], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(FileIO):
        def readinto(self, buffer: Any) -> int:
            raise OSError(5, "Input/output error")

    block = CudaMemory(stream.context, 100)
    with (
        Broken(parts[0].path) as file,
        pytest.raises(QwenImageError, match=r"cannot be read \(Input/output error\), and it should hold .*weight.1;"),
    ):
        upload_parts(stream, parts[:1], [DeviceArray(block, (1,), "uint8")], {parts[0].path: file}, parts)


def test_an_error_of_the_driver_is_passed_on(stream: CudaStream, driver: FakeDriver, parts: list[FilePart]) -> None:
    driver.do_cuMemcpyHtoDAsync_v2 = lambda *arguments: 700  # type: ignore[method-assign]
    with pytest.raises(QwenImageError, match="cuMemcpyHtoDAsync_v2 with error 700"):
        send(stream, parts, parts)
