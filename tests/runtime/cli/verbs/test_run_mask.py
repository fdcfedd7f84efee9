"""`qwen-image run --mask`: the picture outside, the document, `--from`, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.images.parameters import PictureParameters
from tests.support.images import mask_of, patches

FIRST = patches(256, 320)
ALPHA = np.full((320, 256), 255, np.uint8)
ALPHA[100:, 64:] = 0


@pytest.fixture
def edit(tmp_path: Path) -> list[str]:
    """The flags of an edit, with a first image of the fitted size, another one and a mask."""
    folder = tmp_path / "images"
    folder.mkdir()
    FIRST.save(folder / "first.png")
    patches(420, 280, "RGB", 1).save(folder / "other.png")
    for name, alpha in (("mask", ALPHA), ("mirrored", ALPHA[:, ::-1])):
        mask_of(alpha).save(folder / f"{name}.png")
    first, other, mask = (str(folder / f"{name}.png") for name in ("first", "other", "mask"))
    return ["-r", first, "-r", other, "--reference-resolution", "288", "--mask", mask]


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_mask_and_the_picture_again(
    exported: Callable[..., Path], edit: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out, again = str(exported()), tmp_path / "out.png", tmp_path / "again.png"
    assert main(["run", bundle, "-p", "a", *edit, "-s", "2", "--seed", "4", "-o", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["width"], found["height"]) == (256, 320)  # the first image's, not the last one's
    parameters = PictureParameters.read(out)
    assert parameters.mask is not None
    assert found["mask"] == {"file": edit[-1], "sha256": parameters.mask.sha256}
    assert parameters.mask.name == "mask.png"
    stays = ALPHA == 255
    np.testing.assert_array_equal(pixels(out)[stays], np.asarray(FIRST)[stays])
    assert (pixels(out)[~stays] != np.asarray(FIRST)[~stays]).any(axis=-1).mean() > 0.5

    usual = ["run", bundle, "--from", str(out), "-o", str(again)]
    assert main([*usual, *edit[:4], *edit[6:]]) == 0
    assert "will differ" not in capsys.readouterr().err
    assert again.read_bytes() == out.read_bytes()
    assert main([*usual, *edit[:4], "--mask", str(Path(edit[-1]).with_name("mirrored.png"))]) == 0
    assert f"{out} was drawn inside a mask with other pixels: the new picture will differ" in capsys.readouterr().err
    assert main([*usual, *edit[:4]]) == 2
    expected = f'{out} was drawn inside a mask ("mask.png"), which it does not hold; name it with --mask'
    assert expected in capsys.readouterr().err


def test_what_cannot_be_masked(exported: Callable[..., Path], edit: list[str], fails: Callable[..., str]) -> None:
    usual: list[Any] = ["run", exported(), "-p", "a", "-o", Path(edit[-1]).with_name("out.png")]
    first, other, mask = edit[1], edit[3], edit[-1]
    assert f"mask {mask} is without a reference image" in fails(2, *usual, "--mask", mask)
    assert "expected the size of the first reference image, 420x280" in fails(2, *usual, "-r", other, *edit[4:])
    assert "has no alpha channel" in fails(2, *usual, *edit[:-1], other)
    square = fails(2, *usual, *edit, "-W", "256", "-H", "256")
    assert "a mask at size 256x256" in square
    assert "leave one side out, or take 256x320 or 192x256" in square
    assert "mask absent.png: no such file" in fails(2, *usual, "-r", first, "--mask", "absent.png")
