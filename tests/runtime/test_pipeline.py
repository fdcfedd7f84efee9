"""The pipeline's own logic, on toy engines in numpy: what is reused, freed, refused, and cancelled."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.component_pool import Memory
from qwen_image_engine.runtime.images.parameters import PictureParameters
from qwen_image_engine.runtime.images.png import to_rgba8
from qwen_image_engine.runtime.model.latents import unpack_latents
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.sampling.schedule import sigmas
from qwen_image_engine.runtime.sampling.solver import guide
from qwen_image_engine.runtime.sampling.step import Step
from tests.support.numpy_engines import SCHEDULE, Journal, NumpyEngine, numpy_pipeline, same_pictures

SMALL: dict[str, Any] = {"width": 64, "height": 96, "steps": 3}


def last(steps: Any) -> Step:
    *_, final = steps
    assert isinstance(final, Step)
    return final


def test_freed_engines_are_loaded_again(pipeline: QwenImage, journal: Journal) -> None:
    before = pipeline.generate("a red circle", seed=7, **SMALL)
    pipeline.free()
    assert journal.counts()["close step"] == journal.counts()["close text_encoder"] == 1
    assert same_pictures(before, pipeline.generate("a red circle", seed=7, **SMALL))
    assert journal.counts()["run prefix"] == 2  # encodings are freed too


class TestGenerate:
    def test_the_seed_decides_the_picture(self, pipeline: QwenImage) -> None:
        pictures = [pipeline.generate("a red circle", seed=seed, **SMALL) for seed in (7, 7, 8)]
        assert pictures[0][0].rgba.shape == (96, 64, 4)
        assert pictures[0][0].latents.shape == (24, 4)
        assert same_pictures(pictures[0], pictures[1])
        assert not same_pictures(pictures[0], pictures[2])

    def test_given_latents_take_the_place_of_the_seed(self, pipeline: QwenImage) -> None:
        start = np.random.default_rng(0).standard_normal((2, 24, 4), np.float32)
        kept = start.copy()
        given = pipeline.generate("a", latents=start, num_images=2, **SMALL)
        assert given[0].parameters.seed is None
        assert np.array_equal(start, kept)
        steps = pipeline.sample(pipeline.encode("a"), latents=start, num_images=2, **SMALL)
        assert np.array_equal(last(steps).latents, np.stack([picture.latents for picture in given]))

    @pytest.mark.parametrize("guidance", [None, 2.5])
    def test_a_batch_is_its_images(self, pipeline: QwenImage, guidance: float | None) -> None:
        """The first image's noise is also what one image alone would get, so both must be equal."""
        steered = {} if guidance is None else {"guidance": guidance, "negative_prompt": "a long negative prompt"}
        four = pipeline.generate("a red circle", num_images=4, seed=3, **SMALL, **steered)
        noise = np.stack([picture.latents for picture in four])
        assert len({picture.tobytes() for picture in noise}) == 4
        one = pipeline.generate("a red circle", seed=3, **SMALL, **steered)
        np.testing.assert_allclose(one[0].latents, four[0].latents, rtol=1e-5, atol=1e-6)
        assert [picture.parameters.image for picture in four] == [0, 1, 2, 3]

    def test_guidance_steers_every_step(self, pipeline: QwenImage) -> None:
        positive, negative = pipeline.encode("a red circle"), pipeline.encode("")
        toward, away = (pipeline.denoiser(item, width=64, height=96) for item in (positive, negative))
        steered = pipeline.denoiser(positive, negative=negative, guidance=3.0, width=64, height=96)
        latents = np.random.default_rng(0).standard_normal((1, 24, 4), np.float32)
        for sigma in (1.0, 0.3):
            expected = guide(toward(latents, sigma), away(latents, sigma), 3.0)
            assert np.array_equal(steered(latents, sigma), expected)
            assert not np.array_equal(toward(latents, sigma), expected)

    def test_pictures_carry_their_parameters(self, pipeline: QwenImage, tmp_path: Path) -> None:
        picture = pipeline.generate("写着“你好”\nred", negative_prompt="", guidance=2.0, seed=-5, **SMALL)[0]
        picture.save(tmp_path / "picture.png")
        found = PictureParameters.read(tmp_path / "picture.png")
        assert found == picture.parameters
        assert found.prompt == "写着“你好”\nred"
        assert (found.negative_prompt, found.guidance, found.seed, found.steps) == ("", 2.0, -5, 3)
        assert (found.engine, found.precision, found.checkpoint) == ("numpy", "fp32", "toy")
        assert picture.to_pil().size == (64, 96)

    def test_the_default_number_of_steps(self, checkpoint: Path, journal: Journal) -> None:
        turbo = replace(SCHEDULE, use_dynamic_shifting=False, shift_terminal=None, sample_sigmas=(1.0, 0.7, 0.4))
        picture = numpy_pipeline(checkpoint, journal, schedule=turbo).generate("a", width=32, height=32)[0]
        assert picture.parameters.steps == journal.counts()["run step"] == 3
        assert numpy_pipeline(checkpoint, journal).generate("a", width=32, height=32)[0].parameters.steps == 40


class TestReuse:
    def test_encoder_and_prefix_run_once_a_prompt(self, pipeline: QwenImage, journal: Journal) -> None:
        for seed in range(3):
            pipeline.generate("a red circle", seed=seed, num_images=2, **SMALL)
        pipeline.generate("a red circle", width=32, height=32, steps=2)
        counts = journal.counts()
        assert counts["run text_encoder"] == counts["run prefix"] == 1
        assert counts["run step"] == 3 * 3 + 2
        assert counts["run vae_decoder_mid"] == counts["run vae_decoder_up"] == 3 * 2 + 1

    def test_reused_prompts_draw_what_fresh_ones_do(self, checkpoint: Path, pipeline: QwenImage) -> None:
        arguments: dict[str, Any] = {"negative_prompt": "grey", "guidance": 2.0, "seed": 1, **SMALL}
        pipeline.generate("a", **SMALL)
        pipeline.generate("grey", **SMALL)
        reused = pipeline.generate("a", **arguments)
        assert same_pictures(reused, numpy_pipeline(checkpoint, Journal()).generate("a", **arguments))

    def test_a_new_prompt_keeps_the_negative_one(self, pipeline: QwenImage, journal: Journal) -> None:
        for prompt in ("one", "two", "three"):
            pipeline.generate(prompt, negative_prompt="grey", guidance=2.0, **SMALL)
        assert journal.counts()["run text_encoder"] == 4

    def test_negative_prompt_equal_to_the_prompt(self, pipeline: QwenImage, journal: Journal) -> None:
        pipeline.generate("a", negative_prompt="a", guidance=2.0, **SMALL)
        assert journal.counts()["run prefix"] == 1


class TestMemory:
    def test_sequential_draws_the_same_and_holds_one_engine(self, checkpoint: Path) -> None:
        drawn, journals = [], []
        for memory in get_args(Memory):
            journal = Journal()
            with numpy_pipeline(checkpoint, journal, memory=memory) as pipeline:
                drawn.append(pipeline.generate("a", negative_prompt="b", guidance=2.0, num_images=2, **SMALL))
            journals.append(journal)
        assert same_pictures(*drawn)
        assert [journal.held_at_most() for journal in journals] == [5, 1]
        loads = [event for event in journals[1].events if not event.startswith("run")]
        order = ("text_encoder", "prefix", "step", "vae_decoder_mid", "vae_decoder_up")
        assert loads == [f"{what} {component}" for component in order for what in ("load", "close")]

    def test_preview_while_sequential(self, checkpoint: Path, journal: Journal) -> None:
        pipeline = numpy_pipeline(checkpoint, journal, memory="sequential")
        whole = pipeline.generate("a", seed=2, **SMALL)[0]
        for step in pipeline.sample(pipeline.encode("a"), seed=2, **SMALL):
            preview = pipeline.decode(step.latents, 64, 96)
        assert np.array_equal(preview[0], whole.rgba)
        assert journal.held_at_most() == 1

    def test_a_closed_pipeline_refuses_every_call(self, pipeline: QwenImage, journal: Journal) -> None:
        request = pipeline.prepare("a", **SMALL)
        conditioning = pipeline.encode("a")
        latents = pipeline.generate(request)[0].latents[None]
        pipeline.close()
        pipeline.close()
        assert journal.counts()["close step"] == 1
        before = list(journal.events)
        for call in (
            lambda: pipeline.generate(request),
            lambda: pipeline.generate("a", **SMALL),
            lambda: pipeline.prepare("a", **SMALL),
            lambda: pipeline.encode("a"),
            lambda: pipeline.sample(conditioning, **SMALL),
            lambda: pipeline.decode(latents, 64, 96),
            pipeline.preload,
        ):
            with pytest.raises(QwenImageError, match="this pipeline is closed; load it again"):
                call()
        assert journal.events == before

    def test_timings_name_every_stage(self, pipeline: QwenImage) -> None:
        pipeline.generate("a", **SMALL)
        decoder = {"vae_decoder_mid_s", "vae_decoder_up_s"}
        assert set(pipeline.timings.stages()) == {"load_s", "text_encoder_s", "prefix_s", "step_s", *decoder}
        assert len([entry for entry in pipeline.timings.entries if entry.component == "step"]) == 1 + 3
        pipeline.timings.clear()
        assert pipeline.timings.stages() == {}


def test_leaving_the_loop_cancels(pipeline: QwenImage, journal: Journal) -> None:
    steps = pipeline.sample(pipeline.encode("a"), width=64, height=64, steps=50)
    for step in steps:
        if step.index == 2:
            break
    assert journal.counts()["run step"] == 3
    assert journal.counts()["run vae_decoder_mid"] == 0
    assert pipeline.generate("a", **SMALL)  # and the pipeline goes on


def test_teacher_forcing_with_the_denoiser(pipeline: QwenImage) -> None:
    conditioning = pipeline.encode("a")
    levels = sigmas(pipeline.schedule, 3, 24)
    velocity = pipeline.denoiser(conditioning, width=64, height=96)
    latents = start = np.random.default_rng(0).standard_normal((1, 24, 4), np.float32)
    for step in pipeline.sample(conditioning, latents=start, **SMALL):
        latents = latents + (levels[step.index + 1] - levels[step.index]) * velocity(latents, float(levels[step.index]))
        assert np.array_equal(latents, step.latents)
        assert step.sigma == levels[step.index + 1]


def test_large_pictures_are_decoded_in_tiles(pipeline: QwenImage, journal: Journal) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 2 * 70, 4), np.float32)
    decoded = pipeline.decode(latents, 1120, 32)
    assert decoded.shape == (2, 32, 1120, 4)
    assert journal.counts()["run vae_decoder_mid"] == 2
    assert journal.counts()["run vae_decoder_up"] == 2 * 2
    mid, up = (NumpyEngine(component, journal) for component in ("vae_decoder_mid", "vae_decoder_up"))
    whole = up.run(mid.run({"latents": unpack_latents(latents, 2, 70)}))
    assert np.array_equal(decoded, to_rgba8(whole["image"]))


LATENTS = np.zeros((1, 24, 4), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": 3.0}, "guidance 3 needs a negative prompt"),
        ({"negative_prompt": "grey"}, "needs guidance above 1"),
        ({"guidance": 0.5}, "guidance is 0.5, expected 1"),
        ({"guidance": float("nan"), "negative_prompt": "grey"}, "guidance is nan"),
        ({"width": 100}, "nearest: width 96 or 128"),
        ({"steps": 1}, "at least 2"),
        ({"num_images": 0}, "0 images asked for, expected 1 to 4"),
        ({"num_images": 5}, "5 images asked for, expected 1 to 4"),
        ({"seed": 2**64}, "seed 18446744073709551616 is out of range"),
        ({"latents": LATENTS.astype(np.float64)}, r"float64 \(1, 24, 4\), expected float32"),
        ({"latents": LATENTS, "num_images": 2}, r"expected float32 \(2, 24, 4\)"),
        ({"latents": LATENTS + np.float32("inf")}, "not finite"),
        ({"prompt": "a <|image_pad|> b"}, "stands for a reference image"),
        ({"negative_prompt": "<|image_pad|>", "guidance": 2.0}, "stands for a reference image"),
        ({"prompt": "red " * 2000}, "at most 1100 fit"),
        ({"prompt": "\ud800"}, "not valid Unicode"),
    ],
)
def test_requests_that_cannot_be_drawn(
    pipeline: QwenImage, journal: Journal, change: dict[str, Any], message: str
) -> None:
    for call in (pipeline.prepare, pipeline.generate):
        with pytest.raises(UsageError, match=message):
            call(**{"prompt": "a", **SMALL, **change})
    assert journal.events == []  # nothing was loaded for it


def test_the_caller_who_owns_the_loop_gets_errors_at_once(pipeline: QwenImage) -> None:
    conditioning = pipeline.encode("a")
    with pytest.raises(UsageError, match="nearest"):
        pipeline.sample(conditioning, width=100, height=64)
    with pytest.raises(UsageError, match="needs a negative prompt"):
        pipeline.sample(conditioning, guidance=2.0)
    with pytest.raises(UsageError, match=r"latents of 64x96 are \(batch, 24, 4\)"):
        pipeline.decode(np.zeros((1, 25, 4), np.float32), 64, 96)


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ("text_encoder", "text_encoder: 1 of .* values of hidden_states are not finite"),
        ("prefix", "prefix: 1 of .* values of key_0 are not finite"),
        ("step", "step 1 of 3 .*velocity is not finite"),
        ("vae_decoder_mid", "vae_decoder_mid: 1 of .* values of features are not finite"),
        ("vae_decoder_up", "decoded image holds 1 values that are not finite"),
    ],
)
def test_values_that_are_not_finite_name_their_stage(
    pipeline: QwenImage, journal: Journal, component: str, message: str
) -> None:
    journal.spoiled = component
    with pytest.raises(QwenImageError, match=message):
        pipeline.generate("a", **SMALL)
    journal.spoiled = None
    assert pipeline.generate("a", **SMALL)  # and nothing wrong was kept


def test_unknown_memory_policies(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="expected resident or sequential"):
        numpy_pipeline(checkpoint, Journal(), memory="frugal")
