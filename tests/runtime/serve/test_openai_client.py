"""The server as OpenAI's own client sees it: pictures, edits, streams and errors."""

import base64
import io
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from qwen_image_engine.runtime.images.parameters import PictureParameters
from qwen_image_engine.runtime.pipeline import QwenImage
from tests.support.images import patches
from tests.support.numpy_engines import Journal
from tests.support.served import Served, pixels, png

EXTRA: dict[str, Any] = {"num_inference_steps": 4, "seed": 7}
SMALL: dict[str, Any] = {"prompt": "a red circle", "size": "64x96", "extra_body": EXTRA}
DRAWN: dict[str, Any] = {"width": 64, "height": 96, "steps": 4}


class TestGenerations:
    def test_the_picture_is_the_one_of_its_seed(self, server: Served, twin: QwenImage, tmp_path: Path) -> None:
        reply = server.openai().images.generate(model="toy", **SMALL)
        (expected,) = twin.generate("a red circle", seed=7, **DRAWN)
        assert reply.data is not None
        assert reply.data[0].b64_json is not None
        assert np.array_equal(pixels(reply.data[0].b64_json), expected.rgba)
        assert (reply.size, reply.output_format, reply.background) == ("64x96", "png", "transparent")
        assert reply.model_extra == {"seed": 7}
        assert reply.usage is not None
        assert reply.usage.output_tokens == 24
        assert (
            reply.usage.input_tokens
            == reply.usage.input_tokens_details.text_tokens
            == twin.prefix_tokens("a red circle")
        )
        assert reply.usage.total_tokens == reply.usage.input_tokens + 24

    def test_the_file_is_the_one_that_run_writes(self, server: Served, twin: QwenImage, tmp_path: Path) -> None:
        (expected,) = twin.generate("a red circle", seed=7, **DRAWN)
        expected.save(tmp_path / "expected.png")
        reply = server.openai().images.generate(**SMALL)
        assert reply.data is not None
        data = base64.b64decode(reply.data[0].b64_json or "")
        assert data == (tmp_path / "expected.png").read_bytes()
        (tmp_path / "found.png").write_bytes(data)
        assert PictureParameters.read(tmp_path / "found.png") == expected.parameters

    def test_pictures_of_neighbouring_seeds_share_the_encoding(
        self, server: Served, twin: QwenImage, journal: Journal
    ) -> None:
        reply = server.openai().images.generate(n=3, **SMALL)
        assert reply.data is not None
        assert [(item.model_extra or {})["seed"] for item in reply.data] == [7, 8, 9]
        for item in reply.data:
            (expected,) = twin.generate("a red circle", seed=(item.model_extra or {})["seed"], **DRAWN)
            assert np.array_equal(pixels(item.b64_json or ""), expected.rgba)
        assert reply.usage is not None
        assert reply.usage.output_tokens == 3 * 24
        assert journal.counts()["run text_encoder"] == journal.counts()["run prefix"] == 1

    def test_a_seed_that_is_not_named_is_told(self, server: Served, twin: QwenImage) -> None:
        extra = {"num_inference_steps": 4}
        first, second = (server.openai().images.generate(prompt="a", size="64x96", extra_body=extra) for _ in range(2))
        seeds = [(reply.model_extra or {})["seed"] for reply in (first, second)]
        assert seeds[0] != seeds[1]
        (expected,) = twin.generate("a", seed=seeds[0], **DRAWN)
        assert first.data is not None
        assert np.array_equal(pixels(first.data[0].b64_json or ""), expected.rgba)

    def test_guidance_and_what_to_steer_away_from(self, server: Served, twin: QwenImage) -> None:
        extra = {**EXTRA, "negative_prompt": "grey", "guidance_scale": 2.5}
        reply = server.openai().images.generate(prompt="a", size="64x96", extra_body=extra)
        (expected,) = twin.generate("a", seed=7, negative_prompt="grey", guidance=2.5, **DRAWN)
        assert reply.data is not None
        assert np.array_equal(pixels(reply.data[0].b64_json or ""), expected.rgba)

    @pytest.mark.parametrize("sigmas", ["karras", [1.0, 0.7, 0.3]])
    def test_solvers_and_noise_levels(self, server: Served, twin: QwenImage, sigmas: Any) -> None:
        steps = len(sigmas) if isinstance(sigmas, list) else 4
        options: Any = {"steps": steps, "solver": "ab2", "sigmas": sigmas}
        extra = {"seed": 7, "num_inference_steps": steps, "solver": "ab2", "sigmas": sigmas}
        client, image = server.openai(), patches(96, 64)
        for reply, references in (
            (client.images.generate(prompt="a", size="64x96", extra_body=extra), []),
            (client.images.edit(image=png(image), prompt="a", size="64x96", extra_body=extra), [image]),
        ):
            (expected,) = twin.generate("a", seed=7, width=64, height=96, references=references, **options)
            assert reply.data is not None
            assert np.array_equal(pixels(reply.data[0].b64_json or ""), expected.rgba)

    def test_what_is_ignored(self, server: Served) -> None:
        ignored: dict[str, Any] = {"quality": "high", "style": "vivid", "moderation": "low", "user": "u"}
        reply = server.openai().images.generate(**SMALL, **ignored)
        assert reply.quality == "high"

    @pytest.mark.parametrize(
        ("output_format", "background"),
        [*product(("png", "webp"), ("auto", "opaque", "transparent")), ("jpeg", "auto"), ("jpeg", "opaque")],
    )
    def test_formats_and_backgrounds(
        self, server: Served, twin: QwenImage, output_format: Any, background: Any
    ) -> None:
        reply = server.openai().images.generate(output_format=output_format, background=background, **SMALL)
        (expected,) = twin.generate("a red circle", seed=7, **DRAWN)
        assert reply.data is not None
        found = pixels(reply.data[0].b64_json or "")
        kept = background != "opaque" and output_format != "jpeg"
        assert reply.background == ("transparent" if kept else "opaque")
        rgb, alpha = expected.rgba[..., :3].astype(np.float64), expected.rgba[..., 3:] / 255
        reference = expected.rgba if kept else alpha * rgb + (1 - alpha) * 255
        assert found.shape == reference.shape
        error = np.abs(found.astype(np.float64) - reference)
        # Pillow rounds the product of two bytes by itself; JPEG and WebP at quality 100 lose more, in few pixels.
        assert error.max() <= 1 if output_format == "png" else error.mean() < 8


class TestUrls:
    def test_the_address_is_this_server(self, server: Served, twin: QwenImage) -> None:
        reply = server.openai().images.generate(response_format="url", **SMALL)
        assert reply.data is not None
        assert reply.data[0].b64_json is None
        url = reply.data[0].url or ""
        assert url.startswith(f"{server.url}/v1/images/files/")
        with server.client() as client:
            found = client.get(url)
            assert found.headers["content-type"] == "image/png"
            (expected,) = twin.generate("a red circle", seed=7, **DRAWN)
            assert np.array_equal(pixels(found.content), expected.rgba)
            last = "y" if url[-5] == "x" else "x"
            assert client.get(f"{url[:-5]}{last}.png").status_code == 404
            assert client.get(url.replace(".png", ".webp")).status_code == 404


class TestEdits:
    def test_one_image(self, server: Served, twin: QwenImage) -> None:
        image = patches(96, 64)
        reply = server.openai().images.edit(image=("cat.png", png(image)), **SMALL)
        image.filename = "cat.png"
        (expected,) = twin.generate("a red circle", seed=7, references=[image], **DRAWN)
        assert reply.data is not None
        assert np.array_equal(pixels(reply.data[0].b64_json or ""), expected.rgba)
        assert reply.usage is not None
        fitted = twin.read_references([image]).images[0].rgba
        assert reply.usage.input_tokens_details.image_tokens == fitted.shape[0] * fitted.shape[1] // 256

    def test_several_images_of_any_size(self, server: Served, twin: QwenImage) -> None:
        images = [patches(96, 64), patches(64, 128, "RGB", 1)]
        files = [io.BytesIO(png(image)) for image in images]
        extra = {"num_inference_steps": 2, "seed": 3, "negative_prompt": "", "guidance_scale": 2}
        extra["reference_resolution"] = 160
        reply = server.openai().images.edit(image=files, prompt="both", n=2, extra_body=extra, input_fidelity="high")
        assert reply.data is not None
        for index, item in enumerate(reply.data):
            options: Any = {
                "references": images,
                "reference_resolution": 160,
                "steps": 2,
                "negative_prompt": "",
                "guidance": 2,
            }
            (expected,) = twin.generate("both", seed=3 + index, **options)
            assert np.array_equal(pixels(item.b64_json or ""), expected.rgba)
        assert reply.size == f"{expected.parameters.width}x{expected.parameters.height}"

    def test_a_mask(self, server: Served, twin: QwenImage, tmp_path: Path) -> None:
        """Transparent pixels of the mask are drawn, and opaque ones are the first image's."""
        image, other = patches(64, 96, "RGB", 2), patches(96, 96, "RGB", 1)
        mask = Image.new("RGBA", (64, 96))
        mask.paste((9, 9, 9, 255), (0, 0, 64, 48))
        extra = {**EXTRA, "reference_resolution": 160}
        files = [("one.png", png(image)), ("two.png", png(other))]
        reply = server.openai().images.edit(
            image=files, mask=("mask.png", png(mask)), prompt="a hat", size="64x96", extra_body=extra
        )
        assert reply.data is not None
        data = base64.b64decode(reply.data[0].b64_json or "")
        options: Any = {"references": [image, other], "reference_resolution": 160, "mask": mask}
        (expected,) = twin.generate("a hat", seed=7, **options, **DRAWN)
        assert np.array_equal(pixels(data), expected.rgba)
        assert np.array_equal(pixels(data)[:40, :, :3], np.asarray(image)[:40])
        (tmp_path / "found.png").write_bytes(data)
        recorded = PictureParameters.read(tmp_path / "found.png").mask
        assert recorded is not None
        assert recorded.name == "mask.png"

    def test_the_name_of_the_file_is_recorded_and_nothing_else_of_it(self, server: Served, tmp_path: Path) -> None:
        reply = server.openai().images.edit(image=("../../etc/ca\nt.png", png(patches(96, 64))), **SMALL)
        assert reply.data is not None
        (tmp_path / "found.png").write_bytes(base64.b64decode(reply.data[0].b64_json or ""))
        (reference,) = PictureParameters.read(tmp_path / "found.png").references
        assert reference.name is not None
        assert "/" not in reference.name
        assert reference.name.endswith("t.png")


class TestStreams:
    @pytest.mark.parametrize("count", [0, 1, 2, 3])
    def test_as_many_partial_pictures_as_asked(self, server: Served, twin: QwenImage, count: int) -> None:
        events = list(server.openai().images.generate(stream=True, partial_images=count, **SMALL))
        *partial, completed = events
        assert [event.type for event in partial] == ["image_generation.partial_image"] * count
        assert [event.partial_image_index for event in partial] == list(range(count))  # type: ignore[union-attr]
        assert completed.type == "image_generation.completed"
        (expected,) = twin.generate("a red circle", seed=7, **DRAWN)
        assert np.array_equal(pixels(completed.b64_json), expected.rgba)
        assert completed.usage.output_tokens == 24
        assert all(pixels(event.b64_json).shape == (96, 64, 4) for event in partial)

    def test_a_partial_picture_is_the_preview_of_its_step(self, server: Served, twin: QwenImage) -> None:
        events = list(server.openai().images.generate(stream=True, partial_images=3, **SMALL))
        shown = []
        twin.generate("a red circle", seed=7, on_step=lambda step: shown.append(step.preview(1)[0]), **DRAWN)
        for event, expected in zip(events[:3], shown[:3], strict=True):
            assert np.array_equal(pixels(event.b64_json), expected)

    def test_fewer_where_there_are_fewer_steps(self, server: Served) -> None:
        extra = {"num_inference_steps": 2}
        stream = server.openai().images.generate(
            prompt="a", size="64x96", stream=True, partial_images=3, extra_body=extra
        )
        assert [event.type for event in stream] == ["image_generation.partial_image"] * 2 + [
            "image_generation.completed"
        ]

    def test_edits_have_events_of_their_own(self, server: Served) -> None:
        stream = server.openai().images.edit(
            image=("cat.png", png(patches(96, 64))), stream=True, partial_images=1, n=2, **SMALL
        )
        kinds = ["image_edit.partial_image", "image_edit.completed"] * 2
        assert [event.type for event in stream] == kinds

    def test_an_error_in_the_middle(self, server: Served, journal: Journal) -> None:
        journal.spoiled = "vae_decoder_mid"
        with pytest.raises(openai.APIError, match="could not be drawn"):
            list(server.openai().images.generate(stream=True, **SMALL))
        journal.spoiled = None
        assert len(list(server.openai().images.generate(stream=True, **SMALL))) == 1


class TestOtherRoutes:
    def test_models(self, server: Served) -> None:
        (model,) = server.openai().models.list()
        assert (model.id, model.object) == ("toy", "model")
        assert server.openai().models.retrieve("toy") == model

    def test_errors_are_those_of_the_client(self, server: Served) -> None:
        with pytest.raises(openai.NotFoundError, match="'toy'") as lost:
            server.openai().images.generate(prompt="a", model="gpt-image-2")
        assert (lost.value.param, lost.value.code) == ("model", "model_not_found")
        with pytest.raises(openai.BadRequestError, match=r"992x608 and 1024x608|1024x608 and 992x608") as size:
            server.openai().images.generate(prompt="a", size="1000x608")
        assert size.value.param == "size"
        with pytest.raises(openai.BadRequestError) as unknown:
            server.openai().images.generate(prompt="a", extra_body={"steps": 4})
        assert (unknown.value.param, unknown.value.code) == ("steps", "unknown_parameter")
        assert size.value.request_id is not None

    def test_a_failed_picture_is_an_error_of_the_server(self, server: Served, journal: Journal) -> None:
        journal.spoiled = "step"
        with pytest.raises(openai.InternalServerError, match="x-request-id") as failed:
            server.openai().images.generate(**SMALL)
        (line,) = server.log("failed")
        assert line["id"] == failed.value.request_id
        assert "not finite" in line["error"]
        assert server.metric("failures_total") == 1
