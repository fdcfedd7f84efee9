import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.images.png import check_png_name, reduced, save_png, to_rgba8

RGBA = np.random.default_rng(0).integers(0, 256, (32, 64, 4), dtype=np.uint8)


def test_bytes_equal_diffusers() -> None:
    values = np.random.default_rng(0).uniform(-1.2, 1.2, (2, 4, 64, 96)).astype(np.float32)
    halves = (np.arange(255, dtype=np.float32) + np.float32(0.5)) / np.float32(127.5) - 1  # where rounding decides
    values[0, 0].flat[: halves.size] = halves
    pictures = VaeImageProcessor().postprocess(torch.from_numpy(values), output_type="pil")
    actual = to_rgba8(values)
    assert actual.shape == (2, 64, 96, 4)
    for index, picture in enumerate(pictures):
        assert picture.mode == "RGBA"
        np.testing.assert_array_equal(actual[index], np.asarray(picture))


def test_values_that_are_not_finite_are_refused() -> None:
    values = np.zeros((1, 4, 32, 32), np.float32)
    values[0, 0, 0, :3] = [np.nan, np.inf, -np.inf]
    with pytest.raises(QwenImageError, match=r"3 values that are not finite"):
        to_rgba8(values)


def test_png_keeps_pixels(tmp_path: Path) -> None:
    path = tmp_path / "图 1.png"
    path.write_bytes(b"an older file")
    save_png(path, RGBA)
    with Image.open(path) as image:
        assert image.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(image), RGBA)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_pipe_may_have_any_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    check_png_name(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"picture.jpg: pictures are written as PNG"):
        check_png_name(tmp_path / "picture.jpg")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        save_png(tmp_path / "pipe", RGBA)
        with Image.open(io.BytesIO(os.read(reader, 100_000))) as image:
            np.testing.assert_array_equal(np.asarray(image), RGBA)
    finally:
        os.close(reader)


def test_interrupted_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"an older file")

    def interrupted(self: Image.Image, file: Any, *args: Any, **kwargs: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_png(path, RGBA)
    assert path.read_bytes() == b"an older file"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]


def test_unwritable_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(QwenImageError, match=r"cannot write .*absent/out.png: No such file"):
        save_png(tmp_path / "absent" / "out.png", RGBA)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(QwenImageError, match=r"cannot write .*folder.png: Is a directory"):
        save_png(tmp_path / "folder.png", RGBA)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(QwenImageError, match=r"cannot write .*: Not a directory"):
        save_png(tmp_path / "file" / "out.png", RGBA)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.png"]


def test_reduced_pictures_average_colours_by_their_alpha() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4, :2] = (200, 100, 0, 255)
    found = reduced(rgba, 4)
    assert found.shape == (2, 2, 4)
    np.testing.assert_allclose(found[0, 0], (200, 100, 0, 128), atol=2)  # half of it is there, in its own colour
    assert not found[1].any()
