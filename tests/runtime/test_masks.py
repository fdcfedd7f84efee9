"""Requests with a mask in the pipeline's own logic, on toy engines in numpy."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from qwen_image_engine.engines.core.errors import Cancelled, UsageError
from qwen_image_engine.engines.core.loop import Loop, LoopInputs
from qwen_image_engine.runtime.component_pool import ComponentPool, Memory
from qwen_image_engine.runtime.images.parameters import PictureParameters
from qwen_image_engine.runtime.images.png import reduced
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.sampling.solver import SOLVERS
from qwen_image_engine.runtime.sampling.step import Step
from tests.support.images import mask_of, patches
from tests.support.numpy_engines import FACTS, Journal, NumpyEngine, numpy_pipeline, same_pictures

FIRST, OTHER = patches(64, 96), patches(50, 70, "RGB", 1)
PIXELS = np.asarray(FIRST)
INSIDE = np.zeros((96, 64), bool)
INSIDE[:, :32] = True
LATENTS = np.tile([True, True, False, False], 6)
BIDIRECTIONAL = replace(FACTS, bidirectional=True, cache_token_bytes=0)


def mask(inside: Any = INSIDE) -> Image.Image:
    return mask_of(np.where(inside, 0, 255).astype(np.uint8))


# The fitted size at this resolution is 64x96, so the base has the image's own pixels.
EDIT: dict[str, Any] = {"references": [FIRST], "reference_resolution": 80, "steps": 3, "seed": 3}
MASKED: dict[str, Any] = {**EDIT, "mask": mask()}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_images": 3}, {"guidance": 2.0, "negative_prompt": "grey"}, {"references": [FIRST, OTHER]}],
    ids=["one", "batch", "guidance", "two references"],
)
def test_what_is_outside_stays(checkpoint: Path, solver: str, bidirectional: bool, options: dict[str, Any]) -> None:
    pipeline = numpy_pipeline(checkpoint, Journal(), facts=BIDIRECTIONAL if bidirectional else FACTS)
    pictures = pipeline.generate("a", solver=solver, **{**MASKED, **options})
    base = pipeline._encoder.latents(pipeline.read_references([FIRST], 80).images[0])[0]
    for picture in pictures:
        assert (picture.parameters.width, picture.parameters.height) == (64, 96)
        np.testing.assert_array_equal(picture.rgba[~INSIDE], PIXELS[~INSIDE])
        np.testing.assert_array_equal(picture.latents[~LATENTS], base[~LATENTS])
        assert (picture.rgba[INSIDE] != PIXELS[INSIDE]).any(axis=-1).mean() > 0.9
    inside = {picture.rgba[INSIDE].tobytes() for picture in pictures}
    assert len(inside) == len(pictures)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_mask_that_opens_everything_changes_nothing(pipeline: QwenImage, solver: str) -> None:
    whole = mask(np.ones_like(INSIDE))
    several: dict[str, Any] = {"num_images": 2, "guidance": 2.0, "negative_prompt": "grey"}
    for options in ({}, several):
        plain = pipeline.generate("a", solver=solver, **EDIT, **options)
        assert same_pictures(plain, pipeline.generate("a", solver=solver, mask=whole, **EDIT, **options))


def test_what_is_outside_matters_inside(checkpoint: Path) -> None:
    """The toy network with bidirectional attention is the one whose latents see one another."""
    pipeline = numpy_pipeline(checkpoint, Journal(), facts=BIDIRECTIONAL)
    plain, masked = pipeline.generate("a", **EDIT), pipeline.generate("a", **MASKED)
    assert not np.array_equal(plain[0].latents[LATENTS], masked[0].latents[LATENTS])


def test_another_size_than_the_images_own(pipeline: QwenImage) -> None:
    picture = pipeline.generate("a", **MASKED, width=128)[0]
    assert picture.rgba.shape == (192, 128, 4)
    larger = np.asarray(FIRST.resize((128, 192), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(picture.rgba[:, 66:], larger[:, 66:])
    with pytest.raises(UsageError, match="a mask at size 64x64: the picture keeps the aspect ratio"):
        pipeline.prepare("a", **MASKED, width=64, height=64)
    with pytest.raises(UsageError, match="nearest: width 96 or 128"):
        pipeline.prepare("a", **MASKED, width=100)


def test_given_noise_is_the_noise_outside(pipeline: QwenImage) -> None:
    noise = np.random.default_rng(0).standard_normal((1, 24, 4), np.float32)
    states: list[Any] = []
    options = {**MASKED, "latents": noise}
    pipeline.generate("a", on_step=lambda step: states.append((step.sigma, step.latents)), **options)
    base = pipeline._encoder.latents(pipeline.read_references([FIRST], 80).images[0])
    for sigma, latents in states:
        known = np.float32(sigma) * noise + (np.float32(1) - np.float32(sigma)) * base
        assert np.array_equal(latents[:, ~LATENTS], known[:, ~LATENTS])


def test_previews_show_the_base_outside(pipeline: QwenImage) -> None:
    previews: list[Any] = []
    (picture,) = pipeline.generate(
        "a", on_step=lambda step: previews.append((step.preview(1), step.preview())), **MASKED
    )
    for large, small in previews:
        np.testing.assert_array_equal(large[0][~INSIDE], PIXELS[~INSIDE])
        np.testing.assert_array_equal(small[0], reduced(large[0], 4))
    np.testing.assert_array_equal(previews[-1][0][0], picture.rgba)
    assert not np.array_equal(previews[0][0], previews[-1][0])


def test_the_base_is_encoded_once(pipeline: QwenImage, journal: Journal) -> None:
    request = pipeline.prepare("a", **MASKED)
    assert journal.events == []
    assert request.references.first is None  # the image's own pixels are not held by a queue
    drawn = [pipeline.generate(item) for item in (request, request.with_seed(4), request)]
    assert same_pictures(drawn[0], drawn[2])
    assert not same_pictures(drawn[0], drawn[1])
    assert same_pictures(drawn[1], pipeline.generate("a", **{**MASKED, "seed": 4}))
    assert journal.counts()["run vae_encoder"] == 1  # as a reference image it has the same pixels
    pipeline.generate("a", **MASKED, width=128)
    pipeline.generate("b", **MASKED, width=128)
    assert journal.counts()["run vae_encoder"] == journal.counts()["run vision"] + 1 == 2


def test_nothing_kept_is_another_images(checkpoint: Path) -> None:
    pipeline = numpy_pipeline(checkpoint, Journal(), kept_bytes=0)
    for first in (FIRST, patches(64, 96, seed=5), FIRST):
        options = {**MASKED, "references": [first, OTHER]}
        fresh = numpy_pipeline(checkpoint, Journal()).generate("a", **options)
        assert same_pictures(fresh, pipeline.generate("a", **options))


def test_sequential_draws_the_same_and_holds_one_engine(checkpoint: Path) -> None:
    drawn, journals = [], []
    for memory in get_args(Memory):
        journal = Journal()
        with numpy_pipeline(checkpoint, journal, memory=memory) as pipeline:
            drawn.append(pipeline.generate("a", **MASKED))
        journals.append(journal)
    assert same_pictures(*drawn)
    assert journals[1].held_at_most() == 1
    assert journals[1].counts()["load vae_encoder"] == 1


def test_the_host_takes_the_steps_of_engines_that_take_them(checkpoint: Path) -> None:
    class Looping(NumpyEngine):
        def loop(self, inputs: LoopInputs) -> Loop:
            pytest.fail("the device does not know the mask")

    pipeline = numpy_pipeline(checkpoint, Journal())
    expected = pipeline.generate("a", **MASKED)
    pool = ComponentPool(lambda component: Looping(component, Journal()), "resident")
    pipeline._components = pipeline._encoder._components = pool
    assert pool.loops("step")
    assert same_pictures(expected, pipeline.generate("a", **MASKED))


def test_cancelled_within_a_step(pipeline: QwenImage, journal: Journal) -> None:
    request = pipeline.prepare("a", **MASKED)

    def cancel(step: Step) -> None:
        request.cancel()

    with pytest.raises(Cancelled):
        pipeline.generate(request, on_step=cancel)
    assert journal.counts()["run step"] == 1
    assert pipeline.generate(request.with_seed(1))


def test_pictures_carry_the_mask(pipeline: QwenImage, tmp_path: Path) -> None:
    mask().save(tmp_path / "half.png")
    from_file = pipeline.generate("a", **{**MASKED, "mask": tmp_path / "half.png"})
    from_file[0].save(tmp_path / "picture.png")
    found = PictureParameters.read(tmp_path / "picture.png").mask
    assert found is not None
    assert found.name == "half.png"
    other = pipeline.generate("a", **MASKED)
    assert same_pictures(from_file, other)
    assert other[0].parameters.mask == replace(found, name=None)
    assert pipeline.generate("a", **EDIT)[0].parameters.mask is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": []}, r"mask \(from memory\) is without a reference image"),
        ({"mask": FIRST.convert("RGB")}, "has no alpha channel"),
        ({"mask": mask(np.zeros_like(INSIDE))}, "nothing would be edited"),
        ({"references": [OTHER, FIRST]}, "is 64x96 pixels, expected the size of the first reference image, 50x70"),
        ({"mask": "absent.png"}, "mask absent.png: no such file"),
    ],
)
def test_masks_that_are_refused(pipeline: QwenImage, journal: Journal, change: dict[str, Any], message: str) -> None:
    for call in (pipeline.prepare, pipeline.generate):
        with pytest.raises(UsageError, match=message):
            call("a", **{**MASKED, **change})
    assert journal.events == []


def test_references_that_were_read_before(pipeline: QwenImage) -> None:
    images = pipeline.read_references([FIRST, OTHER], 80, for_mask=True)
    drawn = pipeline.generate("a", **{**MASKED, "references": images})
    assert same_pictures(drawn, pipeline.generate("a", **{**MASKED, "references": [FIRST, OTHER]}))
    with pytest.raises(UsageError, match="for_mask=True"):
        pipeline.prepare("a", **{**MASKED, "references": pipeline.read_references([FIRST], 80)})
