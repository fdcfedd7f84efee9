"""Reference images with colour profiles, compared with LittleCMS as Pillow offers it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from qwen_image_engine.runtime.images.read import read_reference
from tests.support.colour_profiles import P3, SRGB, cmyk_profile, grey_profile, rgb_profile

RGBA = np.random.default_rng(0).integers(0, 256, (40, 56, 4), dtype=np.uint8)
PICTURE = Image.fromarray(RGBA)
WIDE = rgb_profile(P3)


def saved(folder: Path, image: Image.Image, file_format: str, **options: Any) -> Path:
    path = folder / f"reference.{file_format.lower()}"
    image.save(path, file_format, **options)
    return path


def shown(image: Image.Image, profile: bytes) -> NDArray[Any]:
    """The colours that a viewer shows."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return np.asarray(converted)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "AVIF"])
def test_colours_are_converted_and_alpha_stays(tmp_path: Path, file_format: str) -> None:
    lossless = {"WEBP": {"lossless": True, "exact": True}}.get(file_format, {})
    path = saved(tmp_path, PICTURE, file_format, icc_profile=WIDE, **lossless)
    with Image.open(path) as opened:
        stored = opened.convert("RGBA")
    found = np.asarray(read_reference(path))
    np.testing.assert_array_equal(found[..., :3], shown(stored.convert("RGB"), WIDE))
    np.testing.assert_array_equal(found[..., 3], np.asarray(stored)[..., 3])
    assert np.abs(found[..., :3].astype(int) - np.asarray(stored)[..., :3]).max() > 50


def test_a_photograph_is_turned_and_converted(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    path = saved(tmp_path, PICTURE.convert("RGB"), "JPEG", icc_profile=WIDE, exif=tags)
    with Image.open(path) as opened:
        upright = opened.transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(np.asarray(read_reference(path))[..., :3], shown(upright, WIDE))


def test_an_image_in_memory_is_converted() -> None:
    image = PICTURE.copy()
    image.info["icc_profile"] = WIDE
    found = np.asarray(read_reference(image))
    np.testing.assert_array_equal(found[..., :3], shown(PICTURE.convert("RGB"), WIDE))
    np.testing.assert_array_equal(np.asarray(image), RGBA)


def test_a_palette_and_a_transparent_colour(tmp_path: Path) -> None:
    palette = PICTURE.convert("RGB").quantize(16)
    found = np.asarray(read_reference(saved(tmp_path, palette, "PNG", icc_profile=WIDE, transparency=3)))
    np.testing.assert_array_equal(found[..., :3], shown(palette.convert("RGB"), WIDE))
    np.testing.assert_array_equal(found[..., 3], np.where(np.asarray(palette) == 3, 0, 255))


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile(tmp_path: Path, mode: str) -> None:
    image, profile = PICTURE.convert(mode), grey_profile(1.0)
    found = np.asarray(read_reference(saved(tmp_path, image, "PNG", icc_profile=profile)))
    np.testing.assert_array_equal(found[..., :3], shown(image.getchannel(0), profile))
    np.testing.assert_array_equal(found[..., 3], RGBA[..., 3] if mode == "LA" else 255)


def test_sixteen_bits_of_grey_with_a_profile(tmp_path: Path) -> None:
    values, profile = np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16, grey_profile(1.0)
    found = np.asarray(read_reference(saved(tmp_path, Image.fromarray(values), "TIFF", icc_profile=profile)))
    linear = Image.fromarray(np.round(values / 257).astype(np.uint8))
    np.testing.assert_array_equal(found[..., :3], shown(linear, profile))


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_inks(tmp_path: Path, file_format: str) -> None:
    image = PICTURE.convert("RGB").convert("CMYK")
    plain = saved(tmp_path, image, file_format)
    with Image.open(plain) as opened:
        stored = opened.copy()
    assert stored.mode == "CMYK"
    np.testing.assert_array_equal(np.asarray(read_reference(plain).convert("RGB")), np.asarray(stored.convert("RGB")))
    printed = saved(tmp_path, image, file_format, icc_profile=cmyk_profile())
    found = np.asarray(read_reference(printed))
    np.testing.assert_array_equal(found[..., :3], shown(stored, cmyk_profile()))
    assert (found[..., 3] == 255).all()


@pytest.mark.parametrize(
    "profile", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), rgb_profile(SRGB)]
)
def test_srgb_is_left_as_it_is(tmp_path: Path, profile: bytes) -> None:
    np.testing.assert_array_equal(
        np.asarray(read_reference(saved(tmp_path, PICTURE, "PNG", icc_profile=profile))), RGBA
    )


@pytest.mark.parametrize(
    ("profile", "fault"),
    [
        (b"no profile", "cannot open profile from string"),
        (WIDE[:200], "cannot open profile from string"),
        (WIDE[:16] + b"GRAY" + WIDE[20:], "it is for GRAY, and the picture is RGBA"),
        (cmyk_profile(), "it is for CMYK, and the picture is RGBA"),
        (grey_profile(1.0), "it is for GRAY, and the picture is RGBA"),
        (WIDE.replace(b"rTRC", b"xTRC"), "cannot build transform"),
    ],
)
def test_a_profile_that_cannot_be_applied_is_warned_of(tmp_path: Path, profile: bytes, fault: str) -> None:
    path = saved(tmp_path, PICTURE, "PNG", icc_profile=profile)
    with pytest.warns(UserWarning, match=rf"^reference image {path}: its colour profile cannot be applied \({fault}\)"):
        image = read_reference(path)
    np.testing.assert_array_equal(np.asarray(image), RGBA)


@pytest.mark.filterwarnings("ignore:reference image")
@pytest.mark.slow
def test_damaged_profiles_raise_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for profile in (WIDE, cmyk_profile(), grey_profile(2.2)):
        for _ in range(40):
            damaged = np.frombuffer(profile, np.uint8).copy()
            damaged[rng.integers(0, min(len(damaged), 400), 4)] = rng.integers(0, 256, 4)
            image = PICTURE.convert("RGB").convert("CMYK") if profile[16:20] == b"CMYK" else PICTURE.convert("RGB")
            assert read_reference(saved(tmp_path, image, "TIFF", icc_profile=damaged.tobytes())).mode == "RGBA"
