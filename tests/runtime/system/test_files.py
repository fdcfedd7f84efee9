"""Outputs that are no plain files, a pipe and a symlink; paths with `~`, as a shell reads them."""

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.system.files import check_writable, with_home, write_array, write_json


def test_a_pipe_gets_an_array_and_a_document(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_writable(pipe)
        write_array(pipe, array)
        np.testing.assert_array_equal(np.load(io.BytesIO(os.read(reader, 10_000))), array)
        write_json(pipe, {"a": 1})
        assert json.loads(os.read(reader, 10_000)) == {"a": 1}
    finally:
        os.close(reader)


def test_a_symlink_is_checked_where_it_leads(tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "disk" / "real.json")
    with pytest.raises(QwenImageError, match=r"cannot write .*link.json: no folder .*/disk; make it with: mkdir -p "):
        check_writable(link)
    (tmp_path / "disk").mkdir()
    check_writable(link)
    write_json(link, {})
    assert link.is_symlink()
    assert (tmp_path / "disk" / "real.json").read_text() == "{}\n"
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(QwenImageError, match=r"cannot write .*link.json: Too many levels of symbolic links"):
        check_writable(link)


def test_home_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert with_home("~/x") == tmp_path / "x"
    with pytest.raises(QwenImageError, match=re.escape("~nosuchuser/x: there is no home folder ~nosuchuser; write")):
        with_home("~nosuchuser/x")
