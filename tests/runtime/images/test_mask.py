"""Masks: read from files with alpha, resized to the picture, and pixels mixed against Pillow."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.images.mask import Mask
from qwen_image_engine.runtime.images.pixels import reference_hash
from qwen_image_engine.runtime.images.reference_image import ReferenceImage, ReferenceImages
from tests.support.images import mask_of, patches
from tests.support.numpy_engines import FACTS

FIRST, OTHER = patches(96, 64), patches(64, 128, "RGB", 1)
ALPHA = np.full((64, 96), 255, np.uint8)
ALPHA[:, :40] = 0


def references(*images: Image.Image) -> ReferenceImages:
    return ReferenceImages.read(images or (FIRST, OTHER), 96, FACTS.vision, for_mask=True)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "WEBP", "memory", "file in memory", "on its side"])
def test_the_alpha_of_files(tmp_path: Path, kind: str) -> None:
    source: Any = tmp_path / "mask.png"
    if kind in ("RGBA", "LA"):
        mask_of(ALPHA).convert(kind).save(source)
    elif kind == "palette":
        Image.fromarray((ALPHA == 255).astype(np.uint8), "P").save(source, transparency=0)
    elif kind == "WEBP":
        mask_of(ALPHA).save(source, "WEBP", lossless=True)
    elif kind == "on its side":
        tags = Image.Exif()
        tags[0x0112] = 6
        mask_of(np.rot90(ALPHA)).save(source, exif=tags)
    else:
        source = mask_of(ALPHA)
    if kind == "file in memory":
        data = io.BytesIO()
        source.save(data, "PNG")
        source = Image.open(data)
    mask = Mask.read(source, references(), 96, 64)
    np.testing.assert_array_equal(mask.alpha, ALPHA)
    np.testing.assert_array_equal(mask.base.rgba, np.asarray(FIRST))
    assert mask.name == (None if "memory" in kind else "mask.png")
    assert mask.sha256 == reference_hash(ALPHA)


def test_a_latent_is_open_where_any_of_its_pixels_is() -> None:
    alpha = np.full((64, 96), 255, np.uint8)
    alpha[15, 16] = 254
    alpha[63, 95] = 0
    expected = np.zeros((4, 6), bool)
    expected[0, 1] = expected[3, 5] = True
    np.testing.assert_array_equal(Mask.read(mask_of(alpha), references(), 96, 64).open_latents, expected.ravel())


def test_mask_and_image_take_the_pictures_size() -> None:
    mask = Mask.read(mask_of(ALPHA), references(), 192, 128)
    np.testing.assert_array_equal(mask.base.rgba, np.asarray(FIRST.resize((192, 128), Image.Resampling.LANCZOS)))
    assert not mask.alpha[:, :78].any()
    assert (mask.alpha[:, 82:] == 255).all()  # a filter that rings would leave others
    small = Mask.read(mask_of(ALPHA), references(), 96, 64)
    assert mask.sha256 == small.sha256  # of the file, whatever the size of the picture


def test_the_first_image_decides_the_size() -> None:
    found = references()
    assert found.size == found.picture_size(None, None) == (128, 64)  # 118x78, and multiples of 32
    assert found.picture_size(192, None) == (192, 128)
    assert found.picture_size(None, 32) == (64, 32)
    for size in ((128, 64), (128, 96), (192, 128), (64, 32), (224, 160)):
        Mask.read(mask_of(ALPHA), found, *size)
    with pytest.raises(
        UsageError,
        match=r"a mask at size 128x128: .* first reference image, 96x64; leave one side out, or take 128x96 or 192x128",
    ):
        Mask.read(mask_of(ALPHA), found, 128, 128)


def shown(rgba: NDArray[np.uint8], ground: int) -> NDArray[np.float64]:
    """The pictures' colours over a ground of one grey."""
    opacity = rgba[..., 3:] / 255
    return rgba[..., :3] * opacity + ground * (1 - opacity)


def over(alpha: NDArray[np.uint8], base: NDArray[np.uint8]) -> Mask:
    return Mask(alpha, ReferenceImage(base, ""), "", None)


def test_pixels_are_mixed_by_the_masks_alpha() -> None:
    random = np.random.default_rng(0)
    base = random.integers(0, 256, (64, 96, 4), dtype=np.uint8)
    drawn = random.integers(0, 256, (2, 64, 96, 4), dtype=np.uint8)
    alpha = random.integers(0, 256, (64, 96), dtype=np.uint8)
    alpha[:20], alpha[40:] = 0, 255
    found = over(alpha, base).keep_base(drawn)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[:, :20], drawn[:, :20])
    np.testing.assert_array_equal(found[:, 40:], np.broadcast_to(base[40:], (2, 24, 96, 4)))
    share = alpha[..., None] / 255
    for ground in (0, 255):  # over any ground, the mixture is between what both show there
        expected = share * shown(base, ground) + (1 - share) * shown(drawn, ground)
        np.testing.assert_allclose(shown(found, ground), expected, rtol=0, atol=1)  # two roundings of a half
    opaque = np.full_like(base[..., 3:], 255)
    base, first = np.concatenate([base[..., :3], opaque], -1), np.concatenate([drawn[0, ..., :3], opaque], -1)
    pillow = Image.composite(*map(Image.fromarray, (base, first, alpha)))
    difference = over(alpha, base).keep_base(first[None])[0].astype(int) - np.asarray(pillow)
    assert np.abs(difference).max() <= 1  # Pillow divides by 255 in integers


def test_colours_of_transparent_pixels_do_not_show() -> None:
    base, drawn = np.zeros((32, 32, 4), np.uint8), np.zeros((1, 32, 32, 4), np.uint8)
    base[...] = 10, 20, 30, 255
    drawn[...] = 250, 250, 250, 0
    found = over(np.full((32, 32), 128, np.uint8), base).keep_base(drawn)
    assert (found == (10, 20, 30, 128)).all()
    base[..., 3] = 0
    assert not over(np.full((32, 32), 128, np.uint8), base).keep_base(drawn)[..., 3].any()


def animation() -> Image.Image:
    data = io.BytesIO()
    mask_of(ALPHA).save(data, "WEBP", save_all=True, append_images=[mask_of(255 - ALPHA)])
    return Image.open(data)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (mask_of(ALPHA).convert("RGB"), r"has no alpha channel \(mode RGB\), expected one that is 0 where"),
        (Image.fromarray(ALPHA), r"has no alpha channel \(mode L\)"),
        (mask_of(np.full_like(ALPHA, 255)), r"is opaque in every pixel at 96x64, so nothing would be edited; make it"),
        (mask_of(ALPHA[:, :80]), r"is 80x64 pixels, expected the size of the first reference image, 96x64; resize it"),
        (mask_of(ALPHA[:8]), r"is 96x8 pixels, expected at least 32"),
        (animation(), r"has 2 frames, expected a still image; save one frame as PNG$"),
        (b"bytes", r"a mask is bytes, expected a path or a PIL image"),
        ("absent.png", r"mask absent.png: no such file"),
        (__file__, r"mask .*test_mask.py is no image that can be read"),
    ],
)
def test_masks_that_cannot_be_used(mask: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Mask.read(mask, references(), 96, 64)


def test_a_mask_needs_the_first_images_own_pixels() -> None:
    with pytest.raises(UsageError, match=r"mask \(from memory\) is without a reference image.* with -r"):
        Mask.read(mask_of(ALPHA), ReferenceImages(), 96, 64)
    plain = ReferenceImages.read([FIRST], 96, FACTS.vision)
    assert plain.first is None
    with pytest.raises(UsageError, match=r"read them with read_references\(..., for_mask=True\)"):
        Mask.read(mask_of(ALPHA), plain, 96, 64)


def test_an_opening_that_vanishes_at_the_pictures_size() -> None:
    alpha = np.full((1920, 2880), 255, np.uint8)
    alpha[5, 5] = 0
    large = references(patches(2880, 1920))
    with pytest.raises(UsageError, match="is opaque in every pixel at 96x64"):
        Mask.read(mask_of(alpha), large, 96, 64)
    assert Mask.read(mask_of(alpha), large, 2880, 1920).open_latents.sum() == 1
