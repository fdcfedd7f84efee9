"""The text chunks of a picture, as other programs read them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from qwen_image_engine.runtime.images.metadata import text_chunks, webui_text
from qwen_image_engine.runtime.images.parameters import PictureParameters
from qwen_image_engine.runtime.images.png import save_png
from tests.runtime.images.test_parameters import EDIT, PLAIN, RGBA

# `re_param` of `modules/infotext_utils.py` in AUTOMATIC1111/stable-diffusion-webui, commit 0365002.
SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def written(folder: Path, parameters: PictureParameters) -> dict[str, str]:
    save_png(folder / "picture.png", RGBA, text_chunks(parameters))
    with Image.open(folder / "picture.png") as image:
        assert isinstance(image, PngImageFile)
        return dict(image.text)


def parsed(text: str) -> tuple[str, str, dict[str, str]]:
    """The prompt, the negative prompt and the settings, as the web UI finds them."""
    *lines, last = text.strip().split("\n")
    settings = SETTING.findall(last)
    assert len(settings) >= 3  # the web UI takes the line for a part of the prompt otherwise
    start = next((index for index, line in enumerate(lines) if line.startswith("Negative prompt:")), len(lines))
    negative = "\n".join(lines[start:])[len("Negative prompt:") :]
    return "\n".join(lines[:start]), negative.strip(), {key: value.strip('"') for key, value in settings}


def test_the_text_is_the_documented_one() -> None:
    assert webui_text(PLAIN) == (
        "a red fox, in snow\n"
        "Steps: 40, Sampler: Euler, CFG scale: 1, Seed: 7, Size: 64x32, Model: Qwen-Image-2.1, "
        "Version: qwen-image-engine 0.2"
    )


@pytest.mark.parametrize("negative", [None, "", "grey, blurry\nsecond line: 3"])
@pytest.mark.parametrize("prompt", ["", "a fox", "Steps: a fox, red\n一只狐狸: “你好”\n\nlast line", "café"])
def test_the_web_ui_finds_prompt_and_settings(tmp_path: Path, prompt: str, negative: str | None) -> None:
    parameters = replace(PLAIN, prompt=prompt, negative_prompt=negative, guidance=3.5, checkpoint="a, b: c")
    found = parsed(written(tmp_path, parameters)["parameters"])
    assert found == (
        prompt,
        negative or "",
        {
            "Steps": "40",
            "Sampler": "Euler",
            "CFG scale": "3.5",
            "Seed": "7",
            "Size": "64x32",
            "Model": "a, b: c",
            "Version": "qwen-image-engine 0.2",
        },
    )


def test_a_batch_and_given_noise() -> None:
    settings = parsed(webui_text(replace(PLAIN, num_images=3, image=2, seed=None)))[2]
    assert (settings["Batch size"], settings["Batch pos"]) == ("3", "2")
    assert "Seed" not in settings
    assert "\0" not in webui_text(replace(PLAIN, prompt="a\0b"))


@pytest.mark.parametrize("parameters", [PLAIN, EDIT])
def test_keys_are_those_that_readers_expect(tmp_path: Path, parameters: PictureParameters) -> None:
    """ComfyUI parses texts under the keys `prompt` and `workflow` as JSON, so there are none."""
    found = written(tmp_path, parameters)
    assert list(found) == ["parameters", "qwen-image-engine", "XML:com.adobe.xmp"]
    assert json.loads(found["qwen-image-engine"])["prompt"] == parameters.prompt
    data = (tmp_path / "picture.png").read_bytes()
    kinds = re.findall(rb"(tEXt|iTXt)(?=parameters\0|qwen-image-engine\0|XML:com.adobe.xmp\0)", data)
    assert kinds == [b"tEXt" if parameters is PLAIN else b"iTXt", b"tEXt", b"iTXt"]


@pytest.mark.parametrize(
    ("parameters", "term"), [(PLAIN, "trainedAlgorithmicMedia"), (EDIT, "compositeWithTrainedAlgorithmicMedia")]
)
def test_xmp_names_the_digital_source_type(tmp_path: Path, parameters: PictureParameters, term: str) -> None:
    packet = written(tmp_path, parameters)["XML:com.adobe.xmp"]
    root = ElementTree.fromstring(packet.removeprefix("\ufeff"))
    assert root.tag == "{adobe:ns:meta/}xmpmeta"
    rdf = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
    (found,) = root.findall(
        f"{rdf}RDF/{rdf}Description/{{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}}DigitalSourceType"
    )
    assert found.text == f"http://cv.iptc.org/newscodes/digitalsourcetype/{term}"
    with Image.open(tmp_path / "picture.png") as image:
        assert image.info["xmp"] == packet.encode()
