"""The parameters in a picture's PNG file: read back exactly, and what is refused, in one sentence."""

import json
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.images.metadata import text_chunks
from qwen_image_engine.runtime.images.parameters import CHUNK, PictureParameters, ReferenceOrigin
from qwen_image_engine.runtime.images.png import save_png

RGBA = np.random.default_rng(0).integers(0, 256, (32, 64, 4), dtype=np.uint8)

PLAIN = PictureParameters(
    prompt="a red fox, in snow",
    negative_prompt=None,
    references=(),
    mask=None,
    reference_resolution=None,
    guidance=1.0,
    seed=7,
    num_images=1,
    image=0,
    steps=40,
    solver="euler",
    evaluations=40,
    sigmas=None,
    width=64,
    height=32,
    engine="onnxruntime",
    precision="int8",
    checkpoint="Qwen-Image-2.1",
    bundle="ab" * 32,
    version="0.2",
)

EDIT = replace(
    PLAIN,
    prompt="把它变成红色 🙂\nNegative prompt: none\tCafé \x01",
    negative_prompt="",
    references=(ReferenceOrigin("图.png", "cd" * 32), ReferenceOrigin(None, "ef" * 32)),
    mask=ReferenceOrigin("半.png", "01" * 32),
    reference_resolution=512,
    guidance=1.1 + 2.2,
    seed=-(2**63),
    num_images=3,
    image=2,
    solver="heun",
    steps=3,
    evaluations=5,
    sigmas=(1.0, 0.1 + 0.2, 0.1),
    bundle=None,
)


@pytest.mark.parametrize("parameters", [PLAIN, EDIT, replace(PLAIN, seed=None), replace(PLAIN, sigmas="karras")])
def test_parameters_are_read_back_exactly(tmp_path: Path, parameters: PictureParameters) -> None:
    path = tmp_path / "图 1.png"
    save_png(path, RGBA, text_chunks(parameters))
    assert PictureParameters.read(path) == PictureParameters.read(str(path)) == parameters
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), RGBA)


def test_a_picture_from_before_there_were_solvers_is_eulers(tmp_path: Path) -> None:
    old = {key: value for key, value in asdict(PLAIN).items() if key not in ("solver", "evaluations", "sigmas")}
    assert PictureParameters.read(chunk(tmp_path / "picture.png", json.dumps(old))) == PLAIN


def test_a_picture_from_before_there_were_masks_has_none(tmp_path: Path) -> None:
    old = {key: value for key, value in asdict(PLAIN).items() if key != "mask"}
    assert PictureParameters.read(chunk(tmp_path / "picture.png", json.dumps(old))) == PLAIN


def test_a_chunk_behind_the_pixels_is_read(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    save_png(path, RGBA, text_chunks(PLAIN))
    data = path.read_bytes()
    at = data.index(b"tEXt" + CHUNK.encode()) - 4
    chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]
    path.write_bytes(data[:at] + data[at + len(chunk) : -12] + chunk + data[-12:])
    assert PictureParameters.read(path) == PLAIN


def chunk(path: Path, text: str) -> Path:
    info = PngInfo()
    info.add_text(CHUNK, text)
    save_png(path, RGBA, info)
    return path


def changed(**values: Any) -> str:
    return json.dumps({**asdict(PLAIN), **values})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "Expecting value"),
        ("[" * 100_000, "nested more than 100 deep"),
        ("[]", "it is an empty list, expected an object"),
        ("{}", "prompt is missing"),
        (changed(prompt=3), "prompt is 3, expected a text"),
        (changed(seed="7"), 'seed is "7", expected a whole number'),
        (changed(steps=-1), "steps is -1, expected a whole number"),
        (changed(guidance=float("nan")), "guidance is nan, expected a finite number"),
        (changed(references=[{"name": "a.png"}]), r"references\[0\].sha256 is missing"),
        (changed(sigmas=[1, "0.5"]), "sigmas is .*expected null, a name or a list of numbers"),
        (changed(solver=None), "solver is null, expected a text"),
        (changed(mask="m.png"), 'mask is "m.png", expected'),
        (changed(mask={"name": "m.png"}), "mask.sha256 is missing"),
        (changed(strength=0.5), "strength is no key that this version knows"),
        (changed(image=1), "image 1 of a batch of 1"),
        (changed(prompt="a" * 2**20), r"\d+ characters, expected at most 1048576"),
        (changed().replace("64", "9" * 5000), "a number of thousands of digits"),
        (changed(seed="\x1b[2J"), r'seed is "\\u001b\[2J", expected'),
    ],
)
def test_damaged_parameters_are_named(tmp_path: Path, text: str, fault: str) -> None:
    path = chunk(tmp_path / "picture.png", text)
    with pytest.raises(UsageError, match=rf"^{path}: its parameters are damaged or of another version \(.*{fault}"):
        PictureParameters.read(path)


def test_other_files_are_named(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(UsageError) as found:
            PictureParameters.read(path)
        return str(found.value)

    assert refused(tmp_path / "absent.png") == f"cannot read {tmp_path / 'absent.png'}: No such file or directory"
    assert refused(tmp_path) == f"cannot read {tmp_path}: Is a directory"
    text, plain, cut = (tmp_path / f"{name}.png" for name in ("text", "plain", "cut"))
    text.write_text("not a picture")
    assert refused(text) == f"{text} is not a PNG"
    save_png(plain, RGBA)
    assert refused(plain).startswith(f"{plain} holds no parameters under the key qwen-image-engine; only pictures")
    data = plain.read_bytes()
    for length in range(0, len(data) - 12, 97):
        cut.write_bytes(data[:length])
        assert str(cut) in refused(cut)
    bomb = bytearray(data)
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    cut.write_bytes(bomb)
    assert refused(cut).startswith(f"cannot read {cut}: Image size (10000000000 pixels) exceeds limit")
