"""The files behind addresses: bounds in number, bytes and age, and disks that fail."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.runtime.serve import links
from qwen_image_engine.runtime.serve.api.errors import ApiError
from qwen_image_engine.runtime.serve.api.limits import Limits
from qwen_image_engine.runtime.serve.links import Links


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links.tempfile, "tempdir", str(tmp_path))


def files(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if path.is_file()]


def test_bytes_come_back_until_they_are_too_old(tmp_path: Path) -> None:
    now = [0.0]
    kept = Links(Limits(link_s=10), lambda: now[0])
    token = kept.add(b"one", "png")
    assert kept.read(token) == (b"one", "png")
    assert kept.read("../../etc/passwd") is kept.read("") is None
    now[0] = 9.9
    assert kept.read(token) is not None
    now[0] = 10
    assert kept.read(token) is None
    assert files(tmp_path) == []


@pytest.mark.parametrize("limits", [Limits(links=3), Limits(link_bytes=300)])
def test_the_oldest_go_first(tmp_path: Path, limits: Limits) -> None:
    kept = Links(limits)
    tokens = [kept.add(bytes([number]) * 100, "png") for number in range(5)]
    assert [kept.read(token) is not None for token in tokens] == [False, False, True, True, True]
    assert len(files(tmp_path)) == 3
    kept.close()
    assert list(tmp_path.iterdir()) == []
    assert kept.read(tokens[-1]) is None


def test_a_picture_that_is_larger_than_all(tmp_path: Path) -> None:
    kept = Links(Limits(link_bytes=10))
    with pytest.raises(ApiError) as refused:
        kept.add(b"x" * 11, "png")
    assert refused.value.status == 507
    assert files(tmp_path) == []


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot be written")])
def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    kept = Links(Limits())
    first = kept.add(b"first", "png")

    def full(source: Any, target: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(ApiError, match=words) as refused:
            kept.add(b"second", "png")
    assert (refused.value.status, refused.value.param) == (507, "response_format")
    assert len(files(tmp_path)) == 1
    assert kept.read(first) == (b"first", "png")


def test_a_folder_that_was_emptied(tmp_path: Path) -> None:
    kept = Links(Limits())
    token = kept.add(b"first", "png")
    for path in files(tmp_path):
        path.unlink()
    assert kept.read(token) is None
