"""The files of pictures: what each format holds of the pixels and of the parameters."""

import io
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from qwen_image_engine.runtime.images.metadata import webui_text
from qwen_image_engine.runtime.serve.encoding import Output, encode
from tests.runtime.images.test_parameters import EDIT, PLAIN

RGBA = np.random.default_rng(0).integers(0, 256, (32, 64, 4)).astype(np.uint8)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("background", ["transparent", "opaque"])
def test_png_holds_every_byte(background: Any) -> None:
    image = opened(encode(RGBA, Output("png", 100, background), PLAIN))
    assert {"parameters", "qwen-image-engine", "XML:com.adobe.xmp"} <= set(image.info)
    if background == "transparent":
        assert np.array_equal(np.asarray(image), RGBA)
    else:
        alpha = RGBA[..., 3:] / 255
        white = alpha * RGBA[..., :3] + (1 - alpha) * 255
        assert image.mode == "RGB"
        assert np.abs(np.asarray(image) - white).max() <= 1


@pytest.mark.parametrize("file_format", ["webp", "jpeg"])
@pytest.mark.parametrize("parameters", [PLAIN, replace(EDIT, prompt="一只狐狸: “你好”\n" + "x" * 100)])
def test_others_hold_text_and_provenance(file_format: Any, parameters: Any) -> None:
    background: Any = "opaque" if file_format == "jpeg" else "transparent"
    image = opened(encode(RGBA, Output(file_format, 90, background), parameters))
    assert image.format == file_format.upper()
    comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be") == webui_text(parameters)
    packet = image.info["xmp"]
    root = ElementTree.fromstring(packet[packet.index(b"<x:") : packet.rindex(b"<?xpacket")])
    (term,) = root.iter("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert (term.text or "").endswith("lgorithmicMedia")


def test_a_text_that_no_jpeg_can_hold_is_left_out() -> None:
    data = encode(RGBA, Output("jpeg", 90, "opaque"), replace(PLAIN, prompt="x" * 40_000))
    assert 0x9286 not in opened(data).getexif().get_ifd(0x8769)
    assert "xmp" in opened(data).info


@pytest.mark.parametrize("file_format", ["webp", "jpeg"])
def test_quality_is_a_size(file_format: Any) -> None:
    sizes = [len(encode(RGBA, Output(file_format, quality, "opaque"))) for quality in (0, 50, 100)]
    assert sizes == sorted(set(sizes))


def test_webp_keeps_colours_under_transparency_and_alpha_exactly() -> None:
    smooth = np.zeros((32, 64, 4), np.uint8)
    smooth[..., 0] = 200
    smooth[:, 32:, 3] = 255
    found = np.asarray(opened(encode(smooth, Output("webp"))))
    assert np.array_equal(found[..., 3], smooth[..., 3])
    assert abs(found[..., 0].astype(int) - 200).max() < 10


def test_a_partial_picture_has_no_parameters() -> None:
    assert "parameters" not in opened(encode(RGBA, Output())).info
