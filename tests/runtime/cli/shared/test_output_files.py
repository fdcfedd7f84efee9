"""Given latents: read as numpy wrote them, and refused in words where the file is anything else."""

import os
from pathlib import Path

import numpy as np
import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.cli.shared.output_files import read_latents

GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"


def npy(header: str, data: bytes = bytes(24), version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header.encode() + data


def test_latents_are_read_as_they_were_written(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for array in (values, np.asfortranarray(values), np.float32(3)):
        np.save(tmp_path / "latents.npy", array)
        found = read_latents(tmp_path / "latents.npy")
        assert found.dtype == np.float32
        assert np.array_equal(found, array)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        npy(GOOD, bytes(23)),
        npy(GOOD, bytes(25)),
        npy(GOOD, version=b"\3\0"),
        npy(GOOD.replace("(2, 3)", "(-2, -3)")),
        npy(GOOD.replace("(2, 3)", f"({2**62}, 3)")),
        npy(GOOD.replace("(2, 3)", f"({10**400},)")),
        npy(GOOD.replace("(2, 3)", "(2.5,)")),
        npy(GOOD.replace("<f4", "|O")),
        npy(GOOD.replace("<f4", "|V0")),
        npy(GOOD.replace("<f4", "nothing")),
        npy("(" * 500),
        npy(" unexpected\n\tindent"),
        npy("[]"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "latents.npy").write_bytes(data)
    with pytest.raises(QwenImageError, match=r"is not a \.npy file of numbers") as raised:
        read_latents(tmp_path / "latents.npy")
    assert "\n" not in str(raised.value)


def test_archives_devices_and_pipes_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "archive.npz", np.zeros(3))
    with pytest.raises(QwenImageError, match="is an archive of arrays"):
        read_latents(tmp_path / "archive.npz")
    (tmp_path / "zero").symlink_to("/dev/zero")
    names = ["zero"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        names.append("pipe")
    for name in names:
        with pytest.raises(QwenImageError, match="it is a pipe or a device"):
            read_latents(tmp_path / name)
