"""The shapes that engines are built for: every input of every contract, and real requests inside them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_image_engine.engines.core.contract import CONTRACTS, contract
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.engines.plans.entry import Profile
from qwen_image_engine.engines.plans.profile import Range, profile
from qwen_image_engine.runtime.images.fit import reference_size
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer
from qwen_image_engine.runtime.tools.build.shapes import (
    WIDEST,
    BuildShapes,
    Template,
    build_profiles,
    reference_latents,
)
from tests.support.images import patches
from tests.support.numpy_engines import DIMS, FACTS, Journal, NumpyEngine, numpy_pipeline

TEMPLATE = Template(12, ((8,), (11, 6), (11, 10, 6), (11, 10, 10, 6)))
SMALL = BuildShapes(
    sizes=((96, 64), (160, 160), (64, 320)), references=Range(0, 1, 3), reference_resolution=96, batch=Range(1, 1, 2)
)

Shapes = Mapping[str, tuple[int, ...]]


def every(shapes: BuildShapes, template: Template = TEMPLATE, halo: int = 7) -> dict[str, tuple[Profile, ...]]:
    return {name: build_profiles(contract(name, DIMS), shapes, template, halo) for name in CONTRACTS}


def fits(shapes: Shapes, item: Profile) -> bool:
    return all(
        all(low <= size <= high for low, size, high in zip(least, shapes[name], largest, strict=True))
        for name, (least, _, largest) in item.shapes.items()
    )


@pytest.mark.parametrize(
    "shapes",
    [
        BuildShapes(),
        SMALL,
        BuildShapes(sizes=((32, 32),), prompt_tokens=Range.of(1), references=Range.of(3), reference_resolution=32),
        BuildShapes(sizes=((2752, 1536),), batch=Range(1, 2, 4)),
    ],
)
def test_every_input_has_sizes_in_order(shapes: BuildShapes) -> None:
    for name, profiles in every(shapes).items():
        inputs = {spec.name: spec for spec in contract(name, DIMS).inputs}
        assert profiles
        assert len({item.name for item in profiles}) == len(profiles)
        for item in profiles:
            assert set(item.shapes) == set(inputs)
            for tensor, (least, best, largest) in item.shapes.items():
                assert len(least) == len(best) == len(largest) == len(inputs[tensor].shape)
                assert all(1 <= a <= b <= c for a, b, c in zip(least, best, largest, strict=True))
                fixed = [axis for axis in inputs[tensor].shape if isinstance(axis, int)]
                assert [size for size, axis in zip(best, inputs[tensor].shape, strict=True) if axis in fixed] == fixed


def test_profiles_follow_the_buckets_smallest_first() -> None:
    found = every(BuildShapes(sizes=((1024, 1024), (512, 512), (2048, 2048))))
    assert [item.name for item in found["step"]] == ["512x512", "1024x1024", "2048x2048"]
    assert [item.shapes["latents"][1][1] for item in found["step"]] == [1024, 4096, 16384]
    # Their tokens follow on each other: every picture up to the largest has a profile.
    ends = [(item.shapes["latents"][0][1], item.shapes["latents"][2][1]) for item in found["step"]]
    assert ends == [(4, 1024), (1025, 4096), (4097, 16384)]
    assert [item.name for item in found["text_encoder"]] == ["any"]
    # The decoder's second part is run in tiles of 64 latents and a halo, whatever the picture.
    assert found["vae_decoder_up"][-1].shapes["features"][2][2:] == (148, 148)


def test_a_whole_picture_lies_or_stands() -> None:
    """No profile has room for a square of the longest side: its area bounds a picture."""
    found = every(BuildShapes(sizes=((1024, 1024), (2048, 2048))))["vae_decoder_mid"]
    assert [item.name for item in found] == [
        f"{size} {kind}" for size in ("1024x1024", "2048x2048") for kind in ("landscape", "portrait")
    ]
    largest = [item.shapes["latents"][2][2:] for item in found]
    assert largest == [(64, 90), (90, 64), (128, 180), (180, 128)]
    assert [item.shapes["latents"][1][2:] for item in found[2:]] == [(128, 128), (128, 128)]
    (small,) = every(BuildShapes(sizes=((32, 32),)))["vae_decoder_mid"]
    assert small.shapes["latents"][2][2:] == (2, 2)


@pytest.mark.parametrize("bucket", [(1024, 1024), (1344, 768), (64, 320), (2752, 1536)])
def test_every_picture_of_a_buckets_area_has_a_profile(bucket: tuple[int, int]) -> None:
    profiles = every(BuildShapes(sizes=(bucket,)))["vae_decoder_mid"]
    area = bucket[0] * bucket[1] // 256
    for height in range(2, 200, 2):
        for width in range(2, 200, 2):
            if height * width <= area and max(height, width) <= WIDEST * min(height, width):
                (shape,) = (item.shape for item in contract("vae_decoder_mid", DIMS).inputs)
                sizes = (1, *[size for size in shape[1:2] if isinstance(size, int)], height, width)
                assert any(fits({"latents": sizes}, item) for item in profiles), (height, width)


def test_of_equal_profiles_there_is_one() -> None:
    sizes = ((1024, 1024), (4096, 4096), (8192, 4096))
    up = build_profiles(contract("vae_decoder_up", DIMS), BuildShapes(sizes=sizes), TEMPLATE, 7)
    assert [item.name for item in up] == ["1024x1024", "4096x4096"]


@pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "bidirectional"])
def test_real_requests_fit(checkpoint: Path, bidirectional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Shapes]] = []
    run = NumpyEngine.run

    def watched(engine: NumpyEngine, inputs: Mapping[str, Any]) -> Any:
        seen.append((engine.contract.component, {name: value.shape for name, value in inputs.items()}))
        return run(engine, inputs)

    monkeypatch.setattr(NumpyEngine, "run", watched)
    facts = replace(FACTS, bidirectional=bidirectional, cache_token_bytes=0 if bidirectional else 1)
    pipeline = numpy_pipeline(checkpoint, Journal(), facts=facts)
    wide, tall, square = patches(200, 101), patches(60, 110), patches(50, 50)
    requests: list[dict[str, Any]] = [
        {"prompt": "", "width": 32, "height": 32},
        {"prompt": "\n a red circle \n", "width": 96, "height": 64, "references": [square]},
        {"prompt": "a" * 900, "width": 64, "height": 320, "references": [wide, tall, square], "num_images": 2},
        {"prompt": " ", "width": 160, "height": 128, "references": [tall, tall]},
        {"prompt": "一个红色的圆", "width": 224, "height": 96},
    ]
    for request in requests:
        pipeline.generate(**request, steps=2, reference_resolution=96)
    profiles = every(SMALL, Template.of(load_tokenizer(checkpoint), 3), facts.decoder_halo)
    for component, shapes in seen:
        assert any(fits(shapes, item) for item in profiles[component]), (component, shapes)
    expected = {"vision", "vae_encoder", "text_encoder", "vae_decoder_mid", "vae_decoder_up"}
    assert {component for component, _ in seen} == expected | (
        {"joint"} if bidirectional else {"prefix", "prefix_image", "step"}
    )
    # A larger picture, a fourth reference and a third picture at once are outside.
    seen.clear()
    pipeline.generate("a", width=352, height=352, steps=2, references=[square] * 4, reference_resolution=96)
    outside = {name for name, shapes in seen if not any(fits(shapes, item) for item in profiles[name])}
    assert outside >= ({"joint"} if bidirectional else {"step"}) | {"vae_decoder_mid"}


@pytest.mark.parametrize("resolution", [32, 96, 256, 1000, 1024, 2048])
def test_latents_of_reference_images(resolution: int) -> None:
    """Against the size rule itself, for images up to 2:1."""
    room = reference_latents(resolution)
    found = set()
    for ratio in np.linspace(1, WIDEST, 4001):
        sides = (round(5000 * ratio), 5000)
        width, height = reference_size(*sides, resolution, name="image", min_pixels=0, max_pixels=1 << 40)
        found.add(width * height // 256)
    assert room.least <= min(found)
    assert max(found) == room.largest
    assert room.best in found


def test_template_is_the_tokenizers(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    template = Template.of(tokenizer, 2)
    assert [len(runs) for runs in template.runs] == [1, 2, 3]
    turns = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
    assert template.text(0) == sum(len(tokenizer.encode(turn).ids) for turn in turns)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sizes": ((500, 512),)}, "width 500 must be a positive multiple of 32"),
        ({"sizes": ()}, "--profile: no size"),
        ({"sizes": ((512, 512), (1024, 256))}, "expected sizes of different areas"),
        ({"prompt_tokens": Range(0, 1, 5)}, "--prompt-tokens 0:1:5: expected numbers from 1 to 1100"),
        ({"prompt_tokens": Range(1, 1, 1101)}, "--prompt-tokens"),
        ({"references": Range(0, 1, 11)}, "--references 0:1:11: expected numbers from 0 to 10"),
        ({"batch": Range(1, 1, 5)}, "--batch 1:1:5: expected numbers from 1 to 4"),
        ({"reference_resolution": 31}, "reference resolution"),
    ],
)
def test_what_no_request_can_have_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BuildShapes(**values)


def test_ranges() -> None:
    assert Range(1, 2, 3) + Range.of(2) == Range(3, 4, 5)
    assert Range(1, 2, 3) * Range(0, 1, 2) == Range(0, 2, 6)
    with pytest.raises(ValueError, match=r"2:1:3: expected least, best and largest in order"):
        Range(2, 1, 3)
    with pytest.raises(KeyError, match="tokens"):
        profile(contract("step", DIMS), "none", {"batch": Range.of(1)})


def test_fp8_attention_has_32_keys_at_least() -> None:
    """The kernel takes no fewer; the prefix has one key at least."""
    shapes = BuildShapes(sizes=((64, 64), (96, 96), (512, 512)))
    for name in ("step", "joint"):
        plain, fp8 = (
            build_profiles(contract(name, DIMS), shapes, TEMPLATE, 7, fp8_attention=in_fp8) for in_fp8 in (False, True)
        )
        assert [item.shapes["latents"][0][1] for item in plain] == [4, 17, 37]
        # A profile of smaller pictures than that is for the audit to refuse.
        assert [item.shapes["latents"][0][1] for item in fp8] == [16, 31, 37]
