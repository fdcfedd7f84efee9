"""The page in a browser, by mouse and touch, on a server of toy pipelines."""

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.serve.api.limits import Limits
from qwen_image_engine.runtime.serve.guard import Access
from tests.support.chromium import Browser
from tests.support.images import patches
from tests.support.numpy_engines import Journal
from tests.support.served import Gate, Served, pixels, png, served, until
from tests.support.served_page import SMALL, Tab, alpha

pytestmark = pytest.mark.process


class TestDrawing:
    def test_previews_and_the_picture(self, gate: Gate, tab: Tab, twin: QwenImage, tmp_path: Path) -> None:
        tab.draw()
        until(lambda: gate.arrived == 1)
        tab.chromium.until("document.activeElement.id === 'cancel'")
        assert tab.text("step") == "Waiting for the server…"
        seen = set()
        for number in (1, 2, 3):
            gate.open(1)
            tab.chromium.until(f"{tab.of('caption')}.textContent === 'Preview {number}'")
            tab.chromium.until(f"{tab.of('step')}.textContent === 'Step {number} of 4'")
            assert tab.chromium.run(f"{tab.of('bar')}.value") == number / 4
            assert tab.chromium.until(f"{tab.of('image')}.complete && {tab.of('image')}.naturalWidth") == 64
            assert tab.text("live") == f"Preview {number}."
            assert not tab.visible("tools")
            seen.add(tab.chromium.run(f"{tab.of('image')}.src"))
        gate.open()
        tab.wait(1)
        assert len(seen) == 3
        assert tab.text("caption").startswith("64 × 96 · seed 5 · 4 steps · ")
        assert tab.text("live").startswith("Picture finished: 64 × 96")
        assert tab.focused() == "draw"
        (expected,) = twin.generate("a red circle", seed=5, width=64, height=96, steps=4)
        assert np.array_equal(pixels(tab.saved(tmp_path)), expected.rgba)
        assert (tmp_path / "qwen-image-5.png").is_file()
        tab.check_quiet()

    def test_several_pictures_and_their_settings(self, tab: Tab, received: list[dict[str, Any]]) -> None:
        tab.draw(n=2, negative_prompt="a square", guidance_scale=2.5, solver="heun", partial_images=1)
        tab.wait(2)
        fields = ("negative_prompt", "guidance_scale", "solver", "partial_images", "stream", "model")
        assert [received[0][name] for name in fields] == ["a square", 2.5, "heun", 1, True, "toy"]
        assert "seed 6" in tab.text("caption")
        tab.chromium.click("#history li:nth-child(2) button")
        assert "seed 5" in tab.text("caption")
        tab.fill(prompt="another", solver="euler", n=1, size="128x128", negative_prompt="")
        tab.chromium.click("#settings")
        tab.chromium.click("#draw")
        tab.wait(3)
        same = ("prompt", "negative_prompt", "guidance_scale", "solver", "size", "seed")
        assert {name: received[1][name] for name in same} == {name: received[0][name] for name in same}
        assert received[1]["n"] == 1
        tab.check_quiet()
        tab.chromium.click("#clear")
        assert not tab.visible("history")
        assert tab.visible("empty")

    def test_cancel(self, gate: Gate, tab: Tab, journal: Journal) -> None:
        tab.draw(num_inference_steps=50)
        gate.open(1)
        until(lambda: gate.arrived == 2)
        tab.chromium.click("#cancel")
        tab.chromium.until(f"{tab.of('progress')}.hidden")
        assert tab.text("live") == "Cancelled."
        assert not tab.visible("history")
        assert not tab.visible("fault")
        until(lambda: tab.server.log("request")[-1]["path"] == "/v1/images/generations")
        gate.open()
        until(lambda: tab.server.log("cancelled"))
        assert journal.counts()["run step"] <= 3
        assert tab.server.metric("cancelled_total") == 1
        tab.draw()
        tab.wait(1)
        tab.check_quiet()


class TestImages:
    def test_an_edit_of_dropped_pictures(
        self, tab: Tab, cat: Path, received: list[dict[str, Any]], twin: QwenImage, tmp_path: Path
    ) -> None:
        dog = tmp_path / 'a "dog".png'
        dog.write_bytes(png(patches(64, 64, seed=1)))
        tab.chromium.drop("#prompt", cat, dog)
        tab.chromium.until("document.querySelectorAll('#images li').length === 2")
        tab.draw(prompt="two lines\nof a prompt", size="64x64", reference_resolution=512)
        tab.wait(1)
        assert received[0]["reference_resolution"] == 512
        assert received[0]["image"] == [("cat.png", cat.read_bytes()), ("a %22dog%22.png", dog.read_bytes())]
        assert received[0]["prompt"] == "two lines\nof a prompt"
        options: dict[str, Any] = {"width": 64, "height": 64, "steps": 4, "seed": 5, "references": [cat, dog]}
        options["reference_resolution"] = 512
        (expected,) = twin.generate("two lines\nof a prompt", **options)
        assert np.array_equal(pixels(tab.saved(tmp_path)), expected.rgba)
        tab.check_quiet()

    def test_their_order_and_number(self, tab: Tab, cat: Path, tmp_path: Path, received: list[dict[str, Any]]) -> None:
        file = tmp_path / "dog.png"
        file.write_bytes(png(patches(64, 64, seed=1)))
        tab.chromium.drop("body", cat, file)
        tab.chromium.until("document.querySelectorAll('#images li').length === 2")
        tab.chromium.click("#images li:nth-child(2) button")  # up
        tab.draw()
        tab.wait(1)
        assert [name for name, _ in received[0]["image"]] == ["dog.png", "cat.png"]
        tab.chromium.click("#as-image")
        tab.chromium.until("document.querySelectorAll('#images li').length === 3")
        tab.chromium.click("#images li:first-child button:last-child")  # away
        tab.chromium.click("#draw")
        tab.wait(2)
        assert [name for name, _ in received[1]["image"]] == ["cat.png", "qwen-image-5.png"]
        tab.check_quiet()

    def test_by_the_button(self, tab: Tab, cat: Path) -> None:
        document = tab.chromium.call("DOM.getDocument")["root"]["nodeId"]
        node = tab.chromium.call("DOM.querySelector", nodeId=document, selector="#files")["nodeId"]
        tab.chromium.call("DOM.setFileInputFiles", nodeId=node, files=[str(cat)])
        tab.chromium.until("document.querySelectorAll('#images li').length === 1")
        tab.check_quiet()

    def test_what_is_no_picture(self, tab: Tab, cat: Path, tmp_path: Path) -> None:
        text = tmp_path / "notes.txt"
        text.write_text("no picture")
        tab.chromium.drop("body", text, cat)
        assert tab.fault() == "notes.txt is no picture that this browser can show."
        assert tab.chromium.run("document.querySelectorAll('#images li').length") == 1
        tab.chromium.drop("body", *[cat] * 10)
        tab.chromium.until(f"{tab.of('fault')}.textContent === 'At most 10 images can be given.'")
        assert tab.chromium.run("document.querySelectorAll('#images li').length") == 10


class TestMask:
    def paint(self, tab: Tab, kind: str) -> None:
        """A stroke from the middle to the right."""
        (x, y) = tab.chromium.middle("#canvas")
        if kind == "touch":
            for name, points in (("touchStart", [(x, y)]), ("touchMove", [(x + 20, y)]), ("touchEnd", [])):
                touches = [{"x": across, "y": down} for across, down in points]
                tab.chromium.call("Input.dispatchTouchEvent", type=name, touchPoints=touches)
            return
        for name, across in (("mousePressed", 0), ("mouseMoved", 10), ("mouseMoved", 20), ("mouseReleased", 20)):
            buttons = int(name == "mouseMoved")
            tab.chromium.call(
                "Input.dispatchMouseEvent", type=name, x=x + across, y=y, button="left", buttons=buttons, clickCount=1
            )

    @pytest.mark.parametrize("kind", ["mouse", "touch"])
    def test_what_is_painted_is_transparent(
        self, tab: Tab, cat: Path, received: list[dict[str, Any]], kind: str
    ) -> None:
        tab.chromium.call("Emulation.setTouchEmulationEnabled", enabled=kind == "touch")
        tab.chromium.drop("body", cat)
        tab.chromium.until("document.querySelectorAll('#images li').length === 1")
        tab.chromium.click("#open-mask")
        assert tab.text("share") == "Nothing is painted."
        self.paint(tab, kind)
        tab.chromium.until(f"{tab.of('share')}.textContent.endsWith('of the image is painted.')")
        tab.chromium.click("#mask-done")
        tab.chromium.until("document.querySelectorAll('#images canvas').length === 1")
        tab.draw(size="96x64")
        tab.wait(1)
        tab.chromium.call("Emulation.setTouchEmulationEnabled", enabled=False)
        (name, data) = received[0]["mask"][0]
        found = alpha(data)
        assert name == "mask.png"
        assert found.shape == (64, 96)
        assert set(np.unique(found)) == {0, 255}
        assert found[32, 48] == 0
        assert found[0, 0] == found[63, 95] == 255
        tab.check_quiet()

    def test_its_tools(self, tab: Tab, cat: Path, received: list[dict[str, Any]]) -> None:
        tab.chromium.drop("body", cat)
        tab.chromium.until("document.querySelectorAll('#images li').length === 1")
        tab.chromium.click("#open-mask")
        tab.chromium.run("document.querySelector('#mask details').open = true")
        tab.fill(**{"rect-left": 10, "rect-top": 20, "rect-width": 30, "rect-height": 8})
        tab.chromium.click("#rect-fill")
        tab.chromium.click("#mask-invert")
        tab.chromium.click("#mask-clear")
        assert tab.text("share") == "Nothing is painted."
        tab.chromium.click("#mask-undo")
        assert tab.text("share") == "96 % of the image is painted."
        tab.chromium.click("[value=erase]")
        tab.fill(**{"rect-left": 0, "rect-top": 0, "rect-width": 96, "rect-height": 4})
        tab.chromium.click("#rect-fill")
        tab.chromium.click("#mask-done")
        tab.draw(size="96x64")
        tab.wait(1)
        expected = np.zeros((64, 96), np.uint8)
        expected[20:28, 10:40] = expected[:4] = 255
        assert np.array_equal(alpha(received[0]["mask"][0][1]), expected)
        tab.chromium.click("#images li button:last-child")
        tab.chromium.drop("body", cat)
        tab.chromium.until("document.querySelectorAll('#images li').length === 1")
        assert not tab.chromium.run("Boolean(document.querySelector('#images canvas'))")
        tab.chromium.click("#settings")  # brings it back
        tab.chromium.click("#draw")
        tab.wait(2)
        assert received[1]["mask"] == received[0]["mask"]
        tab.check_quiet()

    def test_of_a_photo_on_its_side(self, tab: Tab, tmp_path: Path, received: list[dict[str, Any]]) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        file = tmp_path / "photo.jpg"
        patches(96, 64, "RGB").save(file, exif=exif)
        tab.chromium.drop("body", file)
        tab.chromium.until("document.querySelectorAll('#images li').length === 1")
        tab.chromium.click("#open-mask")
        tab.chromium.click("#mask-invert")
        tab.chromium.click("#mask-done")
        tab.draw()
        tab.wait(1)
        assert alpha(received[0]["mask"][0][1]).shape == (96, 64)


class TestErrors:
    def test_a_size_off_the_grid(self, tab: Tab) -> None:
        tab.draw(size="100x96")
        assert tab.fault() == "'size' is 100x96, expected multiples of 32; the nearest are 96x96 and 128x96."
        assert tab.focused() == "width"
        assert tab.chromium.run("document.querySelector('[aria-invalid]').id") == "width"
        assert not tab.visible("progress")
        (line,) = tab.chromium.told()  # the browser's own, of the status
        assert line["params"]["entry"]["source"] == "network"
        tab.draw(size="96x96")
        tab.wait(1)
        assert not tab.visible("fault")
        assert not tab.chromium.run("Boolean(document.querySelector('[aria-invalid]'))")

    @pytest.mark.parametrize(
        ("values", "words", "field"),
        [
            ({"prompt": ""}, None, None),
            ({"num_inference_steps": 0}, "'num_inference_steps' is 0, expected", "num_inference_steps"),
            ({"negative_prompt": "blue"}, "guidance", "guidance_scale"),
            ({"prompt": "<|image_pad|>"}, "stands for a reference image", "prompt"),
            ({"seed": 2**60}, "Seed: expected a whole number", "seed"),
        ],
    )
    def test_a_field(self, tab: Tab, values: dict[str, Any], words: str | None, field: str | None) -> None:
        tab.draw(**values)
        if words is None:
            tab.wait(1)  # an empty prompt is one
            return
        assert words in tab.fault()
        assert tab.focused() == field
        assert tab.visible(str(field))

    def test_a_failure_while_drawing(self, tab: Tab, journal: Journal) -> None:
        journal.spoiled = "vae_decoder_up"
        tab.draw(partial_images=0)
        assert "could not be drawn" in tab.fault()
        assert tab.chromium.told() == []

    def test_an_image_that_is_too_large(self, pipeline: QwenImage, chromium: Browser, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
        file = tmp_path / "noise.png"
        file.write_bytes(png(Image.fromarray(noise)))
        with served(pipeline, limits=Limits(form_bytes=256 << 10)) as server:
            tab = Tab(chromium, server)
            tab.open()
            chromium.drop("body", file)
            chromium.until("document.querySelectorAll('#images li').length === 1")
            tab.draw()
            assert tab.fault() == "The body is larger than 262.14 kB; send less."

    def test_a_full_queue(self, pipeline: QwenImage, gate: Gate, chromium: Browser) -> None:
        with served(pipeline, limits=Limits(queue=0)) as server:
            tab = Tab(chromium, server)
            tab.open()
            with server.client() as client, ThreadPoolExecutor(1) as threads:
                other = threads.submit(client.post, "/v1/images/generations", json=SMALL)
                until(lambda: gate.arrived == 1)
                tab.draw()
                assert "ask again in" in tab.fault()
                gate.open()
                assert other.result().status_code == 200
            tab.chromium.click("#draw")
            tab.wait(1)

    def test_a_server_that_has_gone(self, pipeline: QwenImage, gate: Gate, chromium: Browser) -> None:
        with served(pipeline, grace_s=0.1) as server:
            tab = Tab(chromium, server)
            tab.open()
            tab.draw()
            until(lambda: gate.arrived == 1)
            server.server.stop()
            until(lambda: server.log("closing"))
            gate.open()
            assert "The server is stopping" in tab.fault()
        tab.chromium.click("#draw")
        tab.chromium.until(f"{tab.of('fault')}.textContent.startsWith('The server does not answer')")

    def test_a_key_is_asked_for_and_forgotten(self, pipeline: QwenImage, chromium: Browser) -> None:
        with served(pipeline, access=Access("secret")) as server:
            tab = Tab(chromium, server)
            tab.open(models=False)
            assert tab.fault() == "This server asks for an API key."
            assert tab.focused() == "key"
            for key, right in (("wrong", False), ("secret", True)):
                tab.fill(key=key)
                tab.chromium.press("Tab")
                if not right:
                    tab.chromium.until(f"{tab.of('fault')}.textContent === 'The API key is wrong.'")
            tab.chromium.until("document.querySelector('#model').options.length > 0")
            tab.draw()
            tab.wait(1)
            tab.open()  # a reload keeps the key
            assert not tab.visible("key-part")
            assert tab.chromium.run("[localStorage.length, document.cookie, Object.values(sessionStorage)]") == [
                0,
                "",
                ["secret"],
            ]


class TestCopies:
    def copied(self, tab: Tab, button: str) -> str:
        tab.chromium.run("navigator.clipboard.writeText = async text => { window.copied = text; }")
        tab.chromium.click(button)
        tab.chromium.until(f"document.querySelector('{button}').textContent === 'Copied'")
        found = tab.chromium.run("window.copied")
        assert isinstance(found, str)
        return found

    def test_json(self, tab: Tab, cat: Path) -> None:
        tab.draw()
        tab.wait(1)
        known = {"n": 1, "model": "toy", "solver": "euler", "guidance_scale": 1}
        assert json.loads(self.copied(tab, "#copy-json")) == {**SMALL, **known}
        tab.chromium.drop("body", cat)
        tab.chromium.until("document.querySelectorAll('#images li').length === 1")
        tab.chromium.click("#draw")
        tab.wait(2)
        assert json.loads(self.copied(tab, "#copy-json")) == {**SMALL, **known, "image": ["cat.png"]}

    @pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
    @pytest.mark.parametrize("name", [None, "a \"b\", c;d='e'\\.png"])
    def test_curl_draws_the_same(self, tab: Tab, cat: Path, tmp_path: Path, name: str | None) -> None:
        if name is not None:
            tab.chromium.drop("body", cat.rename(tmp_path / name))
            tab.chromium.until("document.querySelectorAll('#images li').length === 1")
        tab.draw(prompt='@it\'s "red"; $HOME\n`x` \\ ünï')
        tab.wait(1)
        command, _, rest = self.copied(tab, "#copy-curl").partition(" \\\n  | jq")
        assert rest.endswith("> picture.png\n")
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=True, timeout=60)
        (tmp_path / "saved").mkdir()
        picture = json.loads(done.stdout)["data"][0]["b64_json"]
        assert np.array_equal(pixels(picture), pixels(tab.saved(tmp_path / "saved")))
        assert "Bearer" not in command

    def test_without_a_clipboard(self, tab: Tab) -> None:
        tab.draw()
        tab.wait(1)
        tab.chromium.run("navigator.clipboard.writeText = async () => { throw new Error('no'); }")
        tab.chromium.click("#copy-json")
        tab.chromium.until(f"{tab.of('by-hand')}.open")
        assert json.loads(tab.chromium.run(f"{tab.of('text')}.value"))["seed"] == 5
        tab.chromium.press("Escape")
        tab.chromium.until(f"!{tab.of('by-hand')}.open")


def test_names_are_texts(tab: Tab, cat: Path, tmp_path: Path) -> None:
    markup = "<img src=x onerror=document.title='run'>"
    tab.chromium.drop("body", cat.rename(tmp_path / f"{markup.replace('/', '')}.png"))
    tab.chromium.until("document.querySelectorAll('#images li').length === 1")
    tab.draw(prompt=markup)
    tab.wait(1)
    assert tab.chromium.run("[document.querySelectorAll('[onerror]').length, document.title]") == [0, "qwen-image"]
    tab.check_quiet()


def test_the_policy_is_in_force(tab: Tab) -> None:
    """Whatever gets into the page, no script of its own runs, and nothing is sent to another address."""
    tab.chromium.run(
        "addEventListener('securitypolicyviolation', e => (window.broken ??= []).push(e.effectiveDirective))"
    )
    tab.chromium.run(
        "(() => { const script = document.createElement('script'); script.textContent = 'document.title = 1'; "
        "const frame = document.createElement('iframe'); frame.src = '/'; const image = new Image(); "
        "image.src = 'http://127.0.0.2:9/x.png'; document.body.append(script, frame, image); "
        "fetch('http://127.0.0.2:9/').catch(() => {}); })()"
    )
    tab.chromium.until("broken.length >= 4")
    assert set(tab.chromium.run("broken")) == {"script-src-elem", "frame-src", "img-src", "connect-src"}
    assert tab.chromium.run("document.title") == "qwen-image"


def test_the_history_is_of_the_page_alone(tab: Tab, server: Served) -> None:
    tab.draw()
    tab.wait(1)
    assert tab.chromium.run("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    tab.open()
    assert not tab.visible("history")
