import json

import pytest

from qwen_image_engine.engines.core.contract import CONTRACTS, Contract, Dims, contract, markdown
from qwen_image_engine.engines.core.errors import QwenImageError

DIMS = Dims(
    encoder_hidden=48,
    encoder_head_dim=12,
    context=48,
    layers=3,
    heads=5,
    head_dim=8,
    channels=6,
    z=7,
    features=9,
    vision_head_dim=16,
    deepstack=2,
)


def shapes(component: str, side: str) -> dict[str, tuple[str | int, ...]]:
    return {spec.name: spec.shape for spec in getattr(contract(component, DIMS), side)}


def test_sizes_are_filled_in() -> None:
    assert shapes("text_encoder", "inputs") == {
        "embeddings": ("batch", "text", 48),
        "cos": ("text", 6),
        "sin": ("text", 6),
        "deepstack_0": ("batch", "text", 48),
        "deepstack_1": ("batch", "text", 48),
    }
    assert shapes("text_encoder", "outputs") == {"hidden_states": ("batch", "text", 48)}
    assert shapes("vae_decoder_mid", "inputs") == {"latents": ("batch", 7, "height", "width")}
    assert shapes("vae_decoder_mid", "outputs") == {"features": ("batch", 9, "2*height", "2*width")}
    assert shapes("vae_decoder_up", "inputs") == shapes("vae_decoder_mid", "outputs")
    assert shapes("vae_decoder_up", "outputs") == {"image": ("batch", 4, "16*height", "16*width")}
    assert shapes("vae_encoder", "inputs") == shapes("vae_decoder_up", "outputs")
    assert shapes("vae_encoder", "outputs") == shapes("vae_decoder_mid", "inputs")


def test_step_takes_what_prefix_gives() -> None:
    cache = contract("prefix", DIMS).outputs
    assert [spec.name for spec in cache] == ["key_0", "value_0", "key_1", "value_1", "key_2", "value_2"]
    assert {spec.shape for spec in cache} == {("batch", "prefix", 5, 8)}
    step = contract("step", DIMS).inputs
    assert [spec.name for spec in step[:4]] == ["latents", "time_features", "cos", "sin"]
    assert step[1].shape == (1, 256)
    assert step[4:] == cache


def test_named_keys_and_values_are_codes() -> None:
    step, image = (contract(name, DIMS, "bfloat16", ("key_1", "value_1")) for name in ("step", "prefix_image"))
    of_the_cache = [spec.dtype for spec in step.inputs[4:]]
    assert of_the_cache == ["bfloat16"] * 2 + ["float8_e4m3fn"] * 2 + ["bfloat16"] * 2
    assert [spec.dtype for spec in image.outputs] == of_the_cache
    assert [spec.layer_tensor for spec in image.outputs] == [spec.name for spec in step.inputs[4:]]
    numbers = 5 * 8
    assert step.cache_bytes(7) == 7 * numbers * (4 * 2 + 2 * 1)
    assert contract("step", DIMS).cache_bytes(1) == 6 * numbers * 4
    assert contract("joint", DIMS).cache_bytes(1) == 0


def test_vision_gives_what_the_text_encoder_adds() -> None:
    assert shapes("vision", "inputs") == {
        "patches": ("batch", "4*slots", 1536),
        "indices": ("4*slots", 4),
        "weights": ("4*slots", 4),
        "cos": ("4*slots", 8),
        "sin": ("4*slots", 8),
    }
    assert [spec.dtype for spec in contract("vision", DIMS).inputs if spec.dtype != "float32"] == ["int64"]
    names = ("embeddings", "deepstack_0", "deepstack_1")
    assert shapes("vision", "outputs") == dict.fromkeys(names, ("batch", "slots", 48))
    assert set(names) <= set(shapes("text_encoder", "inputs"))


def test_prefix_image_gives_what_stands_behind_the_prefix() -> None:
    cache = contract("prefix", DIMS).outputs
    wanted = contract("prefix_image", DIMS)
    assert wanted.inputs[-len(cache) :] == cache
    assert [spec.name for spec in wanted.outputs] == [f"own_{spec.name}" for spec in cache]
    assert {spec.shape for spec in wanted.outputs} == {("batch", "image+text", 5, 8)}
    half = {spec.name: spec.dtype for spec in contract("prefix_image", DIMS, cache="bfloat16").outputs}
    assert set(half.values()) == {"bfloat16"}


def test_joint_has_no_cache() -> None:
    assert list(shapes("joint", "inputs")) == [
        "text_states",
        "latents",
        "time_features",
        "text_cos",
        "text_sin",
        "cos",
        "sin",
    ]


def test_symbols_have_no_factors() -> None:
    assert contract("prefix_image", DIMS).symbols() == ("batch", "image", "text", "prefix")
    assert contract("vision", DIMS).symbols() == ("batch", "slots")
    assert contract("step", DIMS).symbols() == ("batch", "tokens", "prefix")
    assert contract("vae_decoder_up", DIMS).symbols() == ("batch", "height", "width")


@pytest.mark.parametrize("component", CONTRACTS)
def test_json_round_trip(component: str) -> None:
    wanted = contract(component, DIMS)
    assert Contract.from_json(json.loads(json.dumps(wanted.to_json()))) == wanted


def test_unknown_component_names_the_known() -> None:
    with pytest.raises(
        QwenImageError, match="no component 'vision2'; known: text_encoder, vision, prefix, prefix_image, step"
    ):
        contract("vision2", DIMS)


def test_markdown_has_a_row_for_each_tensor() -> None:
    rows = [line for line in markdown().splitlines() if line.startswith(("| in |", "| out |"))]
    assert len(rows) == sum(len(item.inputs) + len(item.outputs) for item in CONTRACTS.values())
    assert "| out | `image` | batch, 4, 16·height, 16·width | float32 | RGBA, each channel in [-1, 1] |" in rows
