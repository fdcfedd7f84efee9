import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.utils import load_image
from numpy.typing import NDArray
from PIL import Image, ImageCms

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.images.read import (
    MAX_PIXELS,
    MAX_REFERENCES,
    check_references,
    read_reference,
    reference_name,
)
from tests.support.images import png_chunk

RGBA = np.random.default_rng(0).integers(0, 256, (40, 56, 4), dtype=np.uint8)
PICTURE = Image.fromarray(RGBA)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def grey16(values: NDArray[np.uint16], **options: Any) -> bytes:
    return encoded(Image.fromarray(values), "PNG", **options)


PALETTE = PICTURE.convert("RGB").quantize(16)
COLOUR = tuple(RGBA[0, 0, :3].tolist())
GREY = PICTURE.convert("L")

READABLE: dict[str, bytes] = {
    "RGBA": encoded(PICTURE, "PNG"),
    "RGB": encoded(PICTURE.convert("RGB"), "PNG"),
    "RGB with a transparent colour": encoded(
        PICTURE.convert("RGB"), "PNG", transparency=tuple(RGBA[0, 0, :3].tolist())
    ),
    "palette": encoded(PALETTE, "PNG"),
    "palette with a transparent index": encoded(PALETTE, "PNG", transparency=3),
    "palette with an alpha table": encoded(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))),
    "grey": encoded(GREY, "PNG"),
    "grey with a transparent value": encoded(GREY, "PNG", transparency=int(np.asarray(GREY)[0, 0])),
    "grey and alpha": encoded(PICTURE.convert("LA"), "PNG"),
    "black and white": encoded(GREY.convert("1"), "PNG"),
    "JPEG": encoded(PICTURE.convert("RGB"), "JPEG"),
    "grey JPEG": encoded(GREY, "JPEG"),
    "WEBP": encoded(PICTURE, "WEBP", lossless=True),
    "AVIF": encoded(PICTURE, "AVIF"),
    "CMYK TIFF": encoded(PICTURE.convert("RGB").convert("CMYK"), "TIFF"),
    "BMP": encoded(PICTURE.convert("RGB"), "BMP"),
    "TIFF": encoded(PICTURE, "TIFF"),
    "GIF": encoded(PALETTE, "GIF", transparency=3),
    "camera's JPEG with a preview": encoded(PICTURE.convert("RGB"), "MPO", save_all=True, append_images=[GREY]),
}


@pytest.mark.parametrize("data", READABLE.values(), ids=READABLE)
def test_pixels_equal_diffusers(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "reference"
    path.write_bytes(data)
    image = read_reference(path)
    assert image.mode == "RGBA"
    expected = load_image(str(path), convert_method=lambda opened: opened.convert("RGBA"))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    assert np.array_equal(np.asarray(read_reference(str(path))), np.asarray(image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "AVIF"])
def test_orientation_equals_diffusers(tmp_path: Path, orientation: int, file_format: str) -> None:
    path = tmp_path / "reference"
    path.write_bytes(encoded(PICTURE.convert("RGB"), file_format, exif=exif(orientation)))
    expected = load_image(str(path), convert_method=lambda opened: opened.convert("RGBA"))
    assert expected.size == ((56, 40) if orientation <= 4 else (40, 56))
    np.testing.assert_array_equal(np.asarray(read_reference(path)), np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_plain_tiffs_that_lie_on_their_side(tmp_path: Path, mode: str) -> None:
    """Pillow 13 garbles these if it opens them by their path."""
    image = (PICTURE if mode == "RGBA" else PICTURE.convert("RGB")).convert(mode)
    path = tmp_path / "reference.tiff"
    image.save(path, exif=exif(6))
    expected = image.transpose(Image.Transpose.ROTATE_270).convert("RGB")
    np.testing.assert_array_equal(np.asarray(read_reference(path).convert("RGB")), np.asarray(expected))


def test_an_image_in_memory_stays_as_it_is() -> None:
    image = PICTURE.convert("RGB")
    assert read_reference(image).mode == "RGBA"
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(read_reference(PICTURE)), RGBA)


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = tmp_path / "grey.png"
    path.write_bytes(grey16(values, transparency=300))
    actual = np.asarray(read_reference(path))
    expected = np.round(values / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(actual[..., :3], np.stack([expected] * 3, axis=-1))
    np.testing.assert_array_equal(actual[..., 3], np.where(values == 300, 0, 255))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_grey_tiffs_are_scaled(tmp_path: Path, order: str, orientation: int) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(512, 128)
    path = tmp_path / "grey.tiff"
    path.write_bytes(grey_tiff(values, order, orientation=orientation))
    expected = np.round(values / 65535 * 255).astype(np.uint8)
    found = np.asarray(read_reference(path))
    np.testing.assert_array_equal(found[..., 0], expected if orientation == 1 else np.rot90(expected, -1))
    assert (found[..., 3] == 255).all()


def test_the_levels_of_a_tiff_are_its_own(tmp_path: Path) -> None:
    path = tmp_path / "grey.tiff"
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16
    path.write_bytes(grey_tiff(values, "<", photometric=0))  # white is 0
    np.testing.assert_array_equal(np.asarray(read_reference(path))[..., 1], 255 - np.round(values / 257))
    values //= 16
    path.write_bytes(grey_tiff(values, "<", bits=12))
    np.testing.assert_array_equal(np.asarray(read_reference(path))[..., 1], np.round(values / 4095 * 255))


def grey_tiff(
    values: NDArray[np.uint16], order: str, *, bits: int = 16, photometric: int = 1, orientation: int = 1
) -> bytes:
    """A TIFF of one strip; 12 bits are packed, two values to three bytes."""
    height, width = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    if bits == 12:
        first, second = values.reshape(-1, 2).T
        pixels = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8).tobytes()
    shorts = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 274: orientation, 277: 1, 278: height}
    entries = {tag: (3, struct.pack(f"{order}HH", value, 0)) for tag, value in shorts.items()}
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    entries[273] = (4, struct.pack(f"{order}I", start))
    entries[279] = (4, struct.pack(f"{order}I", len(pixels)))
    directory = b"".join(
        struct.pack(f"{order}HHI", tag, kind, 1) + value for tag, (kind, value) in sorted(entries.items())
    )
    magic = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
    return magic + struct.pack(f"{order}H", len(entries)) + directory + b"\0" * 4 + pixels


def colours16(values: NDArray[np.uint16], *chunks: bytes) -> bytes:
    """A PNG of 16-bit colours, which Pillow does not write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    pixels, end = png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *chunks, pixels, end])


def test_sixteen_bit_colours_are_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (32, 48, 3), dtype=np.uint16)
    path = tmp_path / "colours.png"
    path.write_bytes(colours16(values))
    actual = np.asarray(read_reference(path))
    np.testing.assert_array_equal(actual[..., :3], values >> 8)  # Pillow keeps the upper byte
    assert (actual[..., 3] == 255).all()


def mode_f() -> bytes:
    return encoded(GREY.convert("F"), "TIFF")


def animated(file_format: str) -> bytes:
    frames = [Image.fromarray(np.roll(RGBA, shift, axis=0)) for shift in range(3)]
    return encoded(frames[0], file_format, save_all=True, append_images=frames[1:])


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (
        lambda: b"",
        "is no image that can be read, expected PNG, JPEG, WEBP, AVIF, BMP, TIFF, GIF; save it as PNG",
    ),
    "HEIC": (
        lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "is a HEIC, as phones save, which is not read; convert it to PNG or JPEG$",
    ),
    "text": (lambda: b"not a picture", "is no image"),
    "EPS": (lambda: encoded(PICTURE.convert("RGB"), "EPS"), "is no image"),
    "ICO": (lambda: encoded(PICTURE, "ICO"), "is no image"),
    "animated PNG": (lambda: animated("PNG"), "has 3 frames, expected a still image; .* --first-frame"),
    "animated GIF": (lambda: animated("GIF"), "has 3 frames"),
    "animated WEBP": (lambda: animated("WEBP"), "has 3 frames"),
    "TIFF of pages": (lambda: animated("TIFF"), "has 3 frames"),
    "animated AVIF": (lambda: animated("AVIF"), "has 3 frames"),
    "Lab": (lambda: encoded(lab(), "TIFF"), "has mode LAB, .* save it as an RGB or RGBA PNG"),
    "floats": (mode_f, "has mode F,"),
    "integers": (lambda: encoded(GREY.convert("I"), "TIFF"), "has mode I,"),
    "16-bit transparent colour": (
        lambda: colours16(np.zeros((32, 32, 3), np.uint16), png_chunk(b"tRNS", struct.pack(">HHH", 4660, 0, 0))),
        "has 16-bit colours and a transparent one, expected 8 bits; save it as an RGBA PNG",
    ),
    "narrow": (lambda: png(31, 400), "is 31x400 pixels, expected at least 32 a side.*scale"),
    "flat": (lambda: png(400, 1), "is 400x1 pixels, expected at least 32"),
    "long": (lambda: png(32, 6432), "is 32x6432 pixels, 201:1, expected at most 200:1; crop"),
    "wide": (lambda: header(20_000, 100), "is 20000x100 pixels, expected at most 16384 a side; scale it down"),
    "large": (lambda: header(12_000, 12_000), f"is 12000x12000 pixels, 144000000 in all, expected .* {MAX_PIXELS}"),
    "bomb": (lambda: header(20_000, 20_000), f"has more than the {MAX_PIXELS} pixels"),
}


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "WEBP", "TIFF", "AVIF"])
def test_the_first_frame_is_taken_if_asked_for(tmp_path: Path, file_format: str) -> None:
    path = tmp_path / "animation"
    path.write_bytes(animated(file_format))
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGBA"))
        assert image.n_frames == 3  # type: ignore[attr-defined]
        np.testing.assert_array_equal(np.asarray(read_reference(path, first_frame=True)), expected)
        image.seek(2)
        current = np.asarray(read_reference(image, first_frame=True))
        assert not np.array_equal(current, expected)


def lab() -> Image.Image:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    converted = ImageCms.applyTransform(PICTURE.convert("RGB"), to_lab)
    assert converted is not None
    return converted


def png(width: int, height: int) -> bytes:
    return encoded(Image.new("1", (width, height)), "PNG")


def header(width: int, height: int) -> bytes:
    """A BMP that ends where its pixels begin: reading them would be another error."""
    data = bytearray(encoded(Image.new("RGB", (1, 1)), "BMP"))[:54]
    data[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.filterwarnings("error")  # Pillow's about sizes are ours to say
@pytest.mark.parametrize("name", BAD)
def test_unreadable_files_are_named(tmp_path: Path, name: str) -> None:
    make, words = BAD[name]
    path = tmp_path / "图 reference.img"
    path.write_bytes(make())
    with pytest.raises(UsageError, match=f"^reference image {path} {words}"):
        read_reference(path)


def test_places_without_a_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^reference image .*absent.png: no such file; check the path$"):
        read_reference(tmp_path / "absent.png")
    with pytest.raises(UsageError, match=r"is a folder, expected a file$"):
        read_reference(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"is a device or pipe, expected a file$"):
        read_reference(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"cannot be read to its end \(.*File name too long"):
        read_reference(tmp_path / ("x" * 300))


@pytest.mark.parametrize("name", [name for name in READABLE if name != "camera's JPEG with a preview"])
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    data = READABLE[name]
    path = tmp_path / "cut"
    for length in range(0, len(data) * 3 // 4, len(data) // 9):
        path.write_bytes(data[:length])
        with pytest.raises(UsageError, match=r"^reference image .*/cut (is no image|cannot be read to its end)"):
            read_reference(path)


def test_damaged_files_raise_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged"
    refused = 0
    for data in READABLE.values():
        for _ in range(20):
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[rng.integers(0, min(len(damaged), 300), 3)] = rng.integers(0, 256, 3)
            path.write_bytes(damaged.tobytes())
            try:
                assert read_reference(path).mode == "RGBA"
            except UsageError:
                refused += 1
    assert refused > 0


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "F", "I"])
def test_images_in_memory_of_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(UsageError, match=rf"^reference image \(from memory\) has mode {mode},"):
        read_reference(PICTURE.convert("RGB").convert("L" if mode in "FI" else "RGB").convert(mode))


@pytest.mark.parametrize("source", [None, b"a.png", RGBA], ids=["None", "bytes", "ndarray"])
def test_sources_of_other_types_are_refused(source: Any) -> None:
    with pytest.raises(UsageError, match=rf"^a reference image is {type(source).__name__}, expected a path or a PIL"):
        read_reference(source)


def test_names() -> None:
    assert reference_name("a/b.png") == reference_name(Path("a/b.png")) == "reference image a/b.png"
    assert reference_name(PICTURE) == "reference image (from memory)"


def test_at_most_ten_references() -> None:
    check_references([])
    check_references(["a.png"] * MAX_REFERENCES)
    with pytest.raises(UsageError, match=r"^11 reference images, at most 10 fit; leave some out$"):
        check_references(["a.png"] * (MAX_REFERENCES + 1))
    for one in ("a.png", Path("a.png"), PICTURE):
        with pytest.raises(UsageError, match=r"^the references are one .*, expected a list of them$"):
            check_references(one)  # type: ignore[arg-type]
