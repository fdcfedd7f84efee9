"""Reference images in the pipeline's own logic, on toy engines in numpy: what is reused, refused, and in what order."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.component_pool import Memory
from qwen_image_engine.runtime.images.parameters import PictureParameters
from qwen_image_engine.runtime.pipeline import QwenImage
from tests.support.images import patches
from tests.support.numpy_engines import FACTS, Journal, numpy_pipeline, same_pictures

WIDE, TALL = patches(90, 60), patches(50, 70, "RGB", 1)
SMALL: dict[str, Any] = {"reference_resolution": 64, "width": 64, "height": 96, "steps": 3}
ONCE = ("vision", "vae_encoder", "text_encoder", "prefix", "prefix_image")
BIDIRECTIONAL = replace(FACTS, bidirectional=True, cache_token_bytes=0)


def runs(journal: Journal) -> Counter[str]:
    return Counter({component: journal.counts()[f"run {component}"] for component in ONCE})


class TestGenerate:
    def test_every_reference_and_their_order_count(self, pipeline: QwenImage) -> None:
        requests = [[], [WIDE], [TALL], [WIDE, TALL], [TALL, WIDE], [WIDE, WIDE]]
        drawn = [pipeline.generate("a", references=images, **SMALL)[0].latents.tobytes() for images in requests]
        assert len(set(drawn)) == len(requests)

    @pytest.mark.parametrize("facts", [FACTS, BIDIRECTIONAL], ids=["causal", "bidirectional"])
    def test_a_batch_is_its_images(self, checkpoint: Path, facts: Any) -> None:
        pipeline = numpy_pipeline(checkpoint, Journal(), facts=facts)
        steered = {"guidance": 2.0, "negative_prompt": "grey", "references": [WIDE, TALL], "seed": 3, **SMALL}
        three = pipeline.generate("a", num_images=3, **steered)
        one = pipeline.generate("a", **steered)
        np.testing.assert_allclose(one[0].latents, three[0].latents, rtol=1e-5, atol=1e-6)
        assert len({picture.latents.tobytes() for picture in three}) == 3

    def test_the_size_is_the_last_references(self, pipeline: QwenImage) -> None:
        arguments: dict[str, Any] = {"references": [TALL, WIDE], "reference_resolution": 128, "steps": 2}
        picture = pipeline.generate("a", **arguments)[0].parameters
        assert (picture.width, picture.height) == (160, 96)  # 128 squared at 3:2
        picture = pipeline.generate("a", **arguments, height=64)[0].parameters
        assert (picture.width, picture.height) == (96, 64)  # of 90x60, not of the fitted 160x96
        picture = pipeline.generate("a", references=[WIDE, TALL], reference_resolution=128, steps=2, width=320)[0]
        assert (picture.parameters.width, picture.parameters.height) == (320, 448)

    def test_pictures_carry_the_hashes(self, pipeline: QwenImage, tmp_path: Path) -> None:
        WIDE.save(tmp_path / "wide.png")
        picture = pipeline.generate("a", references=[tmp_path / "wide.png", TALL], **SMALL)[0]
        picture.save(tmp_path / "picture.png")
        hashes = [image.sha256 for image in pipeline.read_references([WIDE, TALL], 64).images]
        found = PictureParameters.read(tmp_path / "picture.png")
        assert [(item.name, item.sha256) for item in found.references] == [("wide.png", hashes[0]), (None, hashes[1])]
        assert found.reference_resolution == 64
        without = pipeline.generate("a", **SMALL)[0].parameters
        assert (without.references, without.reference_resolution) == ((), None)

    def test_files_and_images_are_the_same(self, pipeline: QwenImage, tmp_path: Path) -> None:
        WIDE.save(tmp_path / "wide.png")
        first = pipeline.generate("a", references=[WIDE], **SMALL)
        assert same_pictures(first, pipeline.generate("a", references=[tmp_path / "wide.png"], **SMALL))
        assert same_pictures(first, pipeline.generate("a", references=pipeline.read_references([WIDE], 64), **SMALL))

    def test_conditioning_has_the_tokens_that_were_announced(self, pipeline: QwenImage) -> None:
        images = pipeline.read_references([WIDE, TALL], 64)
        conditioning = pipeline.encode("a red circle", images)
        assert conditioning.length == pipeline.prefix_tokens("a red circle", images)
        cache = conditioning.cache
        assert {values.shape for values in cache.values()} == {(1, conditioning.length, 2, 6)}
        assert sum(values.nbytes for values in cache.values()) == conditioning.length * FACTS.cache_token_bytes
        latents = sum(image.block.height * image.block.width for image in images.images)
        assert conditioning.length == conditioning.text_states.shape[1] + latents


class TestReuse:
    def test_another_seed_runs_steps_and_decoder_alone(self, pipeline: QwenImage, journal: Journal) -> None:
        arguments: dict[str, Any] = {"references": [WIDE, TALL], "negative_prompt": "grey", "guidance": 2.0, **SMALL}
        pipeline.generate("a", **arguments)
        assert runs(journal) == {
            "vision": 2,
            "vae_encoder": 2,
            "text_encoder": 2,
            "prefix": 2,
            "prefix_image": 4,
        }
        before = len(pipeline.timings.entries)
        pipeline.generate("a", seed=1, **arguments)
        pipeline.generate("a", **{**arguments, "width": 32})
        later = {entry.component for entry in pipeline.timings.entries[before:]}
        assert later == {"step", "vae_decoder_mid", "vae_decoder_up"}

    def test_another_prompt_does_not_look_again(self, pipeline: QwenImage, journal: Journal) -> None:
        for prompt in ("one", "two"):
            pipeline.generate(prompt, references=[WIDE], **SMALL)
        pipeline.generate("two", references=[WIDE, WIDE.copy()], **SMALL)
        assert runs(journal) == {
            "vision": 1,
            "vae_encoder": 1,
            "text_encoder": 3,
            "prefix": 3,
            "prefix_image": 4,
        }

    def test_another_size_of_the_same_image_is_another(self, pipeline: QwenImage, journal: Journal) -> None:
        for resolution in (64, 96):
            pipeline.generate("a", references=[WIDE], **{**SMALL, "reference_resolution": resolution})
        assert runs(journal)["vision"] == 2

    @pytest.mark.parametrize("facts", [FACTS, BIDIRECTIONAL], ids=["causal", "bidirectional"])
    def test_what_is_reused_draws_what_fresh_does(self, checkpoint: Path, facts: Any) -> None:
        pipeline = numpy_pipeline(checkpoint, Journal(), facts=facts)
        arguments: dict[str, Any] = {"negative_prompt": "grey", "guidance": 2.0, "seed": 1, **SMALL}
        pipeline.generate("a", references=[TALL], **SMALL)
        pipeline.generate("grey", references=[WIDE, TALL], **SMALL)
        pipeline.generate("a", **SMALL)
        reused = pipeline.generate("a", references=[WIDE, TALL], **arguments)
        fresh = numpy_pipeline(checkpoint, Journal(), facts=facts)
        assert same_pictures(reused, fresh.generate("a", references=[WIDE, TALL], **arguments))

    @pytest.mark.parametrize(("pictures", "encodings"), [(0, 5), (1, 5), (2, 4), (9, 3)])
    def test_the_limit_of_bytes(self, checkpoint: Path, journal: Journal, pictures: int, encodings: int) -> None:
        """Three prompts, then the first two again: with room for two the last but one is still there."""
        first = numpy_pipeline(checkpoint, Journal())
        size = first.encode("one", first.read_references([WIDE], 64)).nbytes
        pipeline = numpy_pipeline(checkpoint, journal, kept_bytes=int(2 * pictures * 1.05 * size))
        for prompt in ("one", "two", "six", "two" if pictures == 2 else "one", "one" if pictures == 2 else "two"):
            pipeline.generate(prompt, references=[WIDE], **SMALL)
            before = runs(journal)
            pipeline.generate(prompt, references=[WIDE], seed=1, **SMALL)  # the last one's stay in any case
            assert runs(journal) == before
        assert runs(journal)["text_encoder"] == encodings

    def test_an_image_beyond_the_limit_serves_its_request(self, checkpoint: Path, journal: Journal) -> None:
        pipeline = numpy_pipeline(checkpoint, journal, kept_bytes=0)
        for images in ([WIDE, TALL], [WIDE, TALL], [TALL], [WIDE]):
            pipeline.generate("a", negative_prompt="b", guidance=2.0, references=images, **SMALL)
        assert runs(journal)["vision"] == 3


class TestMemory:
    @pytest.mark.parametrize("memory", ["resident", "sequential"])
    def test_order_of_loading(self, checkpoint: Path, memory: Memory) -> None:
        journal = Journal()
        arguments: dict[str, Any] = {"negative_prompt": "b", "guidance": 2.0, "references": [WIDE, TALL], **SMALL}
        with numpy_pipeline(checkpoint, journal, memory=memory) as pipeline:
            drawn = pipeline.generate("a", **arguments)
        order = [event.removeprefix("load ") for event in journal.events if event.startswith("load")]
        assert order == [*ONCE, "step", "vae_decoder_mid", "vae_decoder_up"]
        assert journal.held_at_most() == (1 if memory == "sequential" else len(order))
        assert same_pictures(drawn, numpy_pipeline(checkpoint, Journal()).generate("a", **arguments))

    def test_several_requests_load_each_component_once(self, checkpoint: Path) -> None:
        journal = Journal()
        with numpy_pipeline(checkpoint, journal, memory="sequential") as pipeline:
            asked = [("a", [WIDE]), ("b", []), ("a", [TALL, WIDE]), ("c", [TALL]), ("b", [])]
            requests = [(prompt, pipeline.read_references(images, 64)) for prompt, images in asked]
            found = pipeline.encode_each(requests)
            assert [event for event in journal.events if event.startswith("load")] == [f"load {name}" for name in ONCE]
            assert runs(journal) == {
                "vision": 2,
                "vae_encoder": 2,
                "text_encoder": 4,
                "prefix": 4,
                "prefix_image": 4,
            }
        assert found[1] is found[4]
        for conditioning, request in zip(found, requests, strict=True):
            alone = numpy_pipeline(checkpoint, Journal()).encode(*request)
            assert (conditioning.prompt, conditioning.references) == (alone.prompt, alone.references)
            assert conditioning.segments == alone.segments
            np.testing.assert_array_equal(conditioning.text_states, alone.text_states)
            assert [array.tobytes() for array in conditioning.latents] == [array.tobytes() for array in alone.latents]
            assert conditioning.cache.keys() == alone.cache.keys()
            assert all(np.array_equal(values, alone.cache[name]) for name, values in conditioning.cache.items())

    def test_too_little_for_keys_and_values_is_refused_before_anything_runs(
        self, pipeline: QwenImage, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments: dict[str, Any] = {"negative_prompt": "b", "guidance": 2.0, "references": [WIDE, TALL], **SMALL}
        images = pipeline.read_references([WIDE, TALL], 64)
        tokens = sum(pipeline.prefix_tokens(prompt, images) for prompt in ("a", "b"))
        needed = tokens * FACTS.cache_token_bytes
        where = "qwen_image_engine.runtime.conditioning.reachable_memory_bytes"
        monkeypatch.setattr(where, lambda: needed - 1)
        message = rf"the {tokens} tokens .* take {needed} bytes and {needed - 1} bytes .*--reference-resolution"
        with pytest.raises(QwenImageError, match=message):
            pipeline.generate("a", **arguments)
        assert journal.events == []
        for free in (2**40, None):
            monkeypatch.setattr(where, lambda free=free: free)
            pipeline.generate("a", **arguments)
        assert runs(journal)["text_encoder"] == 2

    def test_too_little_for_the_text_encoders_scores_is_refused(
        self, pipeline: QwenImage, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Scores grow with the square of the tokens: beyond the keys and values here, whose model is narrow."""
        needed = pipeline.prefix_tokens("a", pipeline.read_references([WIDE], 64)) * FACTS.cache_token_bytes
        monkeypatch.setattr("qwen_image_engine.runtime.conditioning.reachable_memory_bytes", lambda: needed)
        with pytest.raises(QwenImageError, match=r"text encoder's attention over \d+ tokens take \d+ bytes"):
            pipeline.generate("a", references=[WIDE], **SMALL)
        assert journal.events == []


def test_bidirectional_attention_has_one_pass(checkpoint: Path, journal: Journal) -> None:
    pipeline = numpy_pipeline(checkpoint, journal, facts=BIDIRECTIONAL)
    arguments: dict[str, Any] = {"references": [WIDE, TALL], **SMALL}
    drawn = [pipeline.generate("a", seed=seed, **arguments)[0] for seed in range(2)]
    assert drawn[0].latents.shape == (24, 4)
    assert runs(journal) == Counter({"vision": 2, "vae_encoder": 2, "text_encoder": 1})
    assert journal.counts()["run joint"] == 6
    other = pipeline.generate("a", references=[TALL, WIDE], **SMALL)[0]
    assert not np.array_equal(drawn[0].latents, other.latents)


@pytest.mark.parametrize("absent", [("vision", "prefix_image"), ("vae_encoder", "prefix_image")])
def test_bundles_without_what_reads_references(checkpoint: Path, journal: Journal, absent: tuple[str, ...]) -> None:
    pipeline = numpy_pipeline(checkpoint, journal, absent=absent)
    with pytest.raises(UsageError, match=rf"the bundle has no {' and no '.join(absent)}; .*--without"):
        pipeline.generate("a", references=[WIDE], **SMALL)
    assert journal.events == []
    assert pipeline.generate("a", **SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": [WIDE] * 11}, "11"),
        ({"references": [WIDE, Path("absent.png")]}, r"absent\.png"),
        ({"reference_resolution": 31}, "from 32 to 4096"),
        ({"reference_resolution": 4096}, "text encoder reads 1024 to 1048576; use --reference-resolution"),
        ({"references": [patches(2000, 50)]}, "longer than|a side is under"),
        ({"width": 0}, "width 32"),
        ({"prompt": "a <|image_pad|>"}, "stands for a reference image"),
    ],
)
def test_requests_that_cannot_be_drawn(
    pipeline: QwenImage, journal: Journal, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline.generate(**{"prompt": "a", "references": [WIDE], **SMALL, **change})
    assert journal.events == []


@pytest.mark.parametrize(
    ("component", "output"),
    [("vision", "embeddings"), ("vae_encoder", "latents"), ("prefix_image", "own_key_0")],
)
def test_values_that_are_not_finite_name_their_stage(
    pipeline: QwenImage, journal: Journal, component: str, output: str
) -> None:
    journal.spoiled = component
    with pytest.raises(QwenImageError, match=rf"{component}: 1 of .* values of {output} are not finite"):
        pipeline.generate("a", references=[WIDE], **SMALL)
    journal.spoiled = None
    assert pipeline.generate("a", references=[WIDE], **SMALL)  # and nothing wrong was kept
