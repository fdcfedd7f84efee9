"""Device memory of plans and their fit into cards, on toy sizes that are added up by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract import CONTRACTS, contract
from qwen_image_engine.engines.core.graph.weight_bytes import weight_bytes
from qwen_image_engine.engines.plans.bound_weight import BoundWeight, WeightPiece
from qwen_image_engine.engines.plans.build_memory import build_memory_bytes
from qwen_image_engine.engines.plans.cards import Card, find_card
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.bundle.manifest_entries import FileEntry
from qwen_image_engine.runtime.tools.build import device_memory
from qwen_image_engine.runtime.tools.build.card_fit import RESERVED_BYTES, card_fit, fit_json, fit_lines
from qwen_image_engine.runtime.tools.build.device_memory import (
    SIDES,
    WAYS,
    Model,
    Need,
    PlanSize,
    model_of_bundle,
    needs,
)
from tests.support.numpy_engines import DIMS

GIB = 1 << 30
PLANS = {"text_encoder": 5, "prefix": 3, "step": 3, "vae_decoder_mid": 1, "vae_decoder_up": 1}


def model(precision: str = "bf16", **more: int) -> Model:
    """A model whose plans take these numbers of GiB, all of them weights."""
    plans = tuple(PlanSize(name, (name,), size * GIB, size * GIB) for name, size in {**PLANS, **more}.items())
    return Model(plans, {name: contract(name, DIMS, "bfloat16") for name in CONTRACTS}, precision, 3)


def card(gib: int, capability: str = "12.0") -> Card:
    return replace(find_card("rtx-5090"), memory_bytes=gib * GIB, compute_capability=capability)


@pytest.fixture
def no_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "scratch_bytes", lambda contract, axes, precision: 0)


def small(found: int, plans: int) -> bool:
    """Whether the toy's inputs, outputs, keys and values, a few megabytes, are all that comes on top of plans."""
    return plans * GIB <= found < plans * GIB + GIB // 4


def test_ways_to_hold_plans(no_scratch: None) -> None:
    first = needs(model())[0]
    assert list(first.ways) == list(WAYS)
    for way, plans in zip(WAYS, (13, 10, 5, 0), strict=True):
        assert small(first.ways[way], plans), way


def test_bound_weights_count_once_for_all_plans(no_scratch: None) -> None:
    shared = {"transformer@8": 2 * GIB, "transformer@9": GIB}
    bound = {"prefix": shared, "step": {**shared, "transformer@7": GIB}, "text_encoder": {"text_encoder@8": 4 * GIB}}
    whole = model()
    plans = tuple(
        replace(plan, bytes=GIB, weight_bytes=0, bound=bound[plan.name], bound_weights=9)
        if plan.name in bound
        else plan
        for plan in whole.plans
    )
    sizes = replace(whole, plans=plans)
    assert sizes.bound_bytes == 8 * GIB
    first = needs(sizes)[0]
    # Plans of 5 GiB. In turns one of two plans of 1 GiB is there, and the weights of both. The step alone has most.
    for way, taken in zip(WAYS, (13, 12, 5, 1), strict=True):
        assert small(first.ways[way], taken), way
    fits = [card_fit(sizes, needs(sizes), card(24))]
    text, document = "\n".join(fit_lines(sizes, needs(sizes), fits)), fit_json(sizes, needs(sizes), fits)
    assert "bound weights lie on the card once for all plans that take them, 8.59 GB in all" in text
    assert "each have the transformer's weights" not in text
    assert document["bound_bytes"] == 8 * GIB
    step = document["plans"][2]
    assert (step["name"], step["bytes"], step["weight_bytes"], step["bound_bytes"]) == ("step", GIB, 0, 4 * GIB)
    assert step["build_memory_bytes"] == build_memory_bytes(0, 9)


def test_reference_images_bring_their_plans(no_scratch: None) -> None:
    sizes = model(vision=2, prefix_image=3, vae_encoder=1)
    for references, resident, turns in ((0, 13, 10), (1, 19, 13)):
        ways = needs(sizes, references, 256)[0].ways
        assert small(ways["resident"], resident)
        assert small(ways["in turns"], turns)


def test_keys_and_values_follow_from_the_tokens_before_the_target() -> None:
    per_token = 2 * 2 * DIMS.layers * DIMS.heads * DIMS.head_dim  # keys and values, in bf16
    for references, tokens in ((0, 200), (2, 200 + 2 * 16 * 16)):
        for need in needs(model(vision=1, prefix_image=3, vae_encoder=1), references, 256):
            assert need.cache_bytes == tokens * per_token


def test_larger_pictures_need_more() -> None:
    found = needs(model(vision=1, prefix_image=3, vae_encoder=1), 1)
    assert [need.side for need in found] == list(SIDES)
    assert all(found[0].ways[way] <= found[1].ways[way] < found[-1].ways[way] for way in ("resident", "in turns"))


def test_bidirectional_attention_keeps_no_keys_and_values(no_scratch: None) -> None:
    plans = tuple(
        PlanSize(name, (name,), GIB, GIB) for name in ("text_encoder", "joint", "vae_decoder_mid", "vae_decoder_up")
    )
    found = needs(replace(model(), plans=plans), 1, 256)[0]
    assert found.cache_bytes == 0
    assert found.ways["resident"] == found.ways["in turns"]


FOUND = tuple(
    Need(side, 0, 0, dict(zip(WAYS, (step * gib * GIB for gib in (20, 16, 9, 2)), strict=True)))
    for step, side in enumerate(SIDES, 1)
)


def test_the_fastest_way_that_fits() -> None:
    found = card_fit(model(), FOUND, card(24))
    assert list(found.ways.values()) == ["resident", "sequential", "streaming", "streaming"]
    assert found.largest == {"resident": 512, "in turns": 512, "sequential": 1024, "streaming": 2048}
    assert found.refused is None
    assert list(card_fit(model(), FOUND, card(2)).ways.values()) == [None] * 4
    assert set(card_fit(model(), FOUND, card(2)).largest.values()) == {None}
    assert card_fit(model(), FOUND, card(2)).largest_side is None


def test_room_is_left_for_the_driver() -> None:
    need = replace(FOUND[0], ways=dict.fromkeys(WAYS, 24 * GIB - RESERVED_BYTES))
    assert card_fit(model(), [need], card(24)).ways == {512: "resident"}
    more = replace(FOUND[0], ways=dict.fromkeys(WAYS, 24 * GIB - RESERVED_BYTES + 1))
    assert card_fit(model(), [more], card(24)).ways == {512: None}


def test_what_helps() -> None:
    assert card_fit(model(), FOUND, card(96)).helps == ()
    helps = card_fit(model(), FOUND, card(24)).helps
    assert helps[:3] == ("--memory sequential", "build --weight-streaming", "--precision fp8 or int8")
    assert "--precision int8" in card_fit(model(), FOUND, card(24, "8.6")).helps
    assert not any("--precision" in words for words in card_fit(model("fp8"), FOUND, card(24)).helps)


def test_a_card_that_does_not_take_the_precision() -> None:
    found = card_fit(model("fp8"), FOUND, card(96, "8.6"))
    assert found.refused == "fp8 needs compute capability 8.9; export in bf16 or int8"
    assert set(found.ways.values()) == {None}
    assert found.helps == ()


def test_lines_and_json_say_the_same() -> None:
    sizes = model()
    fits = [card_fit(sizes, FOUND, card(24)), card_fit(sizes, FOUND, card(96))]
    lines, document = fit_lines(sizes, FOUND, fits), fit_json(sizes, FOUND, fits)
    text = "\n".join(lines)
    assert "prefix, step each have the transformer's weights, 3.22 GB" in text
    assert "--weight-streaming" in text
    assert [item["name"] for item in document["plans"]] == list(PLANS)
    assert document["plans"][0]["build_memory_bytes"] == build_memory_bytes(5 * GIB)
    assert document["pictures"][1]["ways"]["resident"] == 40 * GIB
    first, second = document["cards"]
    assert first["ways"] == {
        "512x512": "resident",
        "1024x1024": "sequential",
        "1536x1536": "streaming",
        "2048x2048": "streaming",
    }
    assert first["largest"] == {
        "any": "2048x2048",
        "resident": "512x512",
        "in turns": "512x512",
        "sequential": "1024x1024",
        "streaming": "2048x2048",
    }
    assert set(second["ways"].values()) == {"resident"}


def test_plans_of_a_bundle(exported: Callable[..., Path]) -> None:
    bundle = exported()
    manifest = read_manifest(bundle)
    found = model_of_bundle(bundle, manifest, "tensorrt-rtx")
    assert [plan.name for plan in found.plans] == list(manifest.components)
    for plan in found.plans:
        weights = weight_bytes(bundle / manifest.components[plan.name].model)
        assert plan.weight_bytes + plan.bound_bytes == weights
        assert plan.weight_bytes < plan.bytes
        assert not plan.built
        assert bool(plan.bound) == (COMPONENTS[plan.name].network != "vae")
    bound = {plan.name: plan.bound.keys() for plan in found.plans}
    assert len(bound["prefix"] & bound["step"]) > len(bound["prefix"]) / 2
    for plan in model_of_bundle(bundle, manifest, "tensorrt").plans:
        assert plan.weight_bytes == weight_bytes(bundle / manifest.components[plan.name].model)
        assert not plan.bound
    weight = BoundWeight.of("bfloat16", [WeightPiece("matrix", (3, 4), "transformer/weights.safetensors", 8, "")])
    entry = PlanEntry("plans/step.plan", "aa", "tensorrt-rtx", "1.7", ("8.9",), None, None, (), bound=(weight,))
    with_plan = replace(
        manifest, plans={"step": (entry,)}, files={**manifest.files, entry.file: FileEntry(12345, "00" * 32)}
    )

    def has_plan(builder: str, name: str | None = None) -> bool:
        of = model_of_bundle(bundle, with_plan, builder, None if name is None else find_card(name))
        step = next(plan for plan in of.plans if plan.name == "step")
        assert (step.bytes == 12345) == (step.bound_bytes == 24)
        return step.bytes == 12345

    assert has_plan("tensorrt-rtx")
    assert has_plan("tensorrt-rtx", "rtx-4090")
    assert not has_plan("tensorrt-rtx", "rtx-5090")
    assert not has_plan("tensorrt")
    assert all(needs(replace(found, precision="bf16"))[0].ways[way] > 0 for way in WAYS)
