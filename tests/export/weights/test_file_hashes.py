"""Hashes by threads: those of hashlib, beside the work of the caller, and gone with it."""

import hashlib
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.export.bundle import network_folder
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.weights import file_hashes
from qwen_image_engine.export.weights.file_hashes import FileHashes, finite_sha256
from qwen_image_engine.reference.storage.tensor_file import read_header
from qwen_image_engine.runtime.system.files import file_sha256


def test_hashes_are_hashlibs(tmp_path: Path) -> None:
    files = {tmp_path / str(number): bytes([number]) * number * 100_000 for number in range(5)}
    for file, content in files.items():
        file.write_bytes(content)
    with FileHashes(list(files), lambda: None) as hashes:
        assert dict(hashes) == {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
        assert hashes.bytes_read == sum(map(len, files.values()))


def test_tensors_are_checked_in_the_same_pass(tmp_path: Path) -> None:
    file, values = tmp_path / "model.safetensors", torch.arange(300.0).reshape(10, 30)
    save_file({"b": values.bfloat16(), "a": values.clone(), "codes": values.to(torch.uint8)}, file)
    tensors = [tensor for name, tensor in read_header(file).items() if name != "a"]
    assert finite_sha256(file, tensors) == hashlib.sha256(file.read_bytes()).hexdigest()
    halves = [tensors[0].rows("second", 5, 5), tensors[0].rows("first", 0, 5)]
    values[7, 3] = math.nan
    save_file({"b": values.bfloat16(), "a": values.clone(), "codes": values.to(torch.uint8)}, file)
    assert finite_sha256(file, tensors[1:]) == hashlib.sha256(file.read_bytes()).hexdigest()
    with (
        FileHashes([file], lambda: None, halves) as hashes,
        pytest.raises(QwenImageError, match=r"'second' has values that are not finite, the first nan at \[2, 3\]"),
    ):
        _ = hashes[file]


def test_a_file_that_cannot_be_read_is_told_to_who_asks(tmp_path: Path) -> None:
    with FileHashes([tmp_path / "missing"], lambda: None) as hashes, pytest.raises(QwenImageError, match="missing"):
        _ = hashes[tmp_path / "missing"]


def test_leaving_stops_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    def endless(file: Path, progress: Callable[[int], None]) -> str:
        while True:
            progress(1)
            begun.set()

    monkeypatch.setattr(file_hashes, "file_sha256", endless)

    def interrupt() -> None:
        assert begun.wait(10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), FileHashes([tmp_path / "a", tmp_path / "b"], interrupt) as hashes:
        _ = hashes[tmp_path / "a"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sha256")]


def test_a_new_bundle_is_traced_while_the_checkpoint_is_hashed(
    random_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = threading.Event()
    untraced = set(network_folder.MODEL_FILES) - {"joint"}

    def late(*arguments: Any) -> str:
        assert traced.wait(1000)
        return file_sha256(*arguments)

    trace = network_folder.trace

    def telling(checkpoint: Any, component: str, dtype: Any) -> Any:
        untraced.discard(component)
        if not untraced:
            traced.set()
        return trace(checkpoint, component, dtype)

    monkeypatch.setattr(file_hashes, "file_sha256", late)
    monkeypatch.setattr(network_folder, "trace", telling)
    export_bundle(random_checkpoint(), tmp_path / "bundle", weights="link")
