"""Configs against the libraries' own classes, in both spellings, and every refusal."""

import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.config import (
    TextEncoderConfig,
    TransformerConfig,
    VaeConfig,
    VisionConfig,
    check_components,
)
from tests.support.json_values import changed
from tests.support.random_configurations import CONFIGURATIONS

CLASSES: dict[str, Any] = {"transformer": TransformerConfig, "text_encoder": TextEncoderConfig, "vae": VaeConfig}
# Of the file of another component.
CLASSES_OF_CASES = {**CLASSES, "vision": VisionConfig}


@pytest.fixture(scope="module")
def parsed(random_checkpoint: Callable[..., Path]) -> dict[str, dict[str, Any]]:
    """Component -> its config.json as the library saved it; `text_encoder4` is transformers 4's spelling."""
    folder = random_checkpoint("narrow")
    configs = {name: json.loads((folder / name / "config.json").read_text()) for name in CLASSES}
    older = random_checkpoint("narrow", spelling="transformers4")
    configs["text_encoder4"] = json.loads((older / "text_encoder/config.json").read_text())
    configs["vision"] = configs["text_encoder"]
    return configs


@pytest.mark.parametrize("spelling", ["transformers4", "transformers5"])
@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_values_are_those_the_library_was_given(
    random_checkpoint: Callable[..., Path], name: str, spelling: str
) -> None:
    folder = random_checkpoint(name, spelling=spelling)
    configuration = CONFIGURATIONS[name]

    def read(component: str) -> Any:
        path = folder / component / "config.json"
        return CLASSES[component].from_json(json.loads(path.read_text()), str(path))

    transformer, text, vae = read("transformer"), read("text_encoder"), read("vae")
    for key, value in configuration.transformer.items():
        assert getattr(transformer, key) == value, key
    assert transformer.hidden_size == transformer.num_attention_heads * transformer.attention_head_dim
    for key, value in configuration.text.items():
        assert getattr(text, key) == (tuple(value) if isinstance(value, list) else value), key
    path = folder / "text_encoder" / "config.json"
    vision = VisionConfig.from_json(json.loads(path.read_text()), str(path))
    assert text.deepstack == len(vision.deepstack)
    for key, value in configuration.vision.items():
        name = {"side": "position_side"}.get(key, key)
        assert getattr(vision, name) == (tuple(value) if isinstance(value, list) else value), key
    assert (vision.out_hidden_size, vision.rope_theta) == (text.hidden_size, 10000.0)
    for key, value in configuration.vae.items():
        assert getattr(vae, key) == (tuple(value) if isinstance(value, list) else value), key
    assert len(vae.latents_mean) == len(vae.latents_std) == vae.z_dim
    check_components(transformer, text, vae)


def test_released_values() -> None:
    """The released checkpoint's values, as the library's defaults and shared facts give them."""
    from diffusers import AutoencoderKLQwenImage21
    from transformers import Qwen3VLConfig

    signature = inspect.signature(AutoencoderKLQwenImage21.__init__)
    values = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    vae = VaeConfig.from_json({"_class_name": "AutoencoderKLQwenImage21", **values}, "vae/config.json")
    assert (vae.z_dim, vae.base_dim, vae.decoder_base_dim, vae.dim_mult) == (64, 96, 144, (1, 2, 4, 8, 8))
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={"num_key_value_heads": 8, "intermediate_size": 12288, "rope_parameters": rope},
        architectures=["Qwen3VLForConditionalGeneration"],
    ).to_dict()
    text = TextEncoderConfig.from_json(config, "text_encoder/config.json")
    assert (text.hidden_size, text.head_dim, text.vocab_size, text.rope_theta) == (4096, 128, 151936, 5e6)


def test_keys_that_change_nothing_are_listed(parsed: dict[str, dict[str, Any]]) -> None:
    for name, config_class in CLASSES.items():
        config = config_class.from_json(parsed[name] | {"_note": 1}, "config.json")
        assert "_note" in config.ignored
        assert config == config_class.from_json(parsed[name], "config.json")
    text = TextEncoderConfig.from_json(parsed["text_encoder"], "config.json")
    assert {"text_config.attention_dropout", "tie_word_embeddings"} <= set(text.ignored)
    assert not any("rope" in key for key in text.ignored)
    older = TextEncoderConfig.from_json(parsed["text_encoder4"], "config.json")
    assert older == text
    assert not any("rope" in key for key in older.ignored)
    assert "dropout" in VaeConfig.from_json(parsed["vae"], "config.json").ignored


def test_old_rope_type_key(parsed: dict[str, dict[str, Any]]) -> None:
    config = copy.deepcopy(parsed["text_encoder4"])
    scaling = config["text_config"]["rope_scaling"]
    scaling["type"] = scaling.pop("rope_type")
    assert TextEncoderConfig.from_json(config, "x") == TextEncoderConfig.from_json(parsed["text_encoder"], "x")
    scaling["type"] = "yarn"
    with pytest.raises(QwenImageError, match=r"x: key '.*\.rope_scaling\.type' is \"yarn\", expected \"default\""):
        TextEncoderConfig.from_json(config, "x")


def test_null_decoder_base_dim_is_base_dim(parsed: dict[str, dict[str, Any]]) -> None:
    config = VaeConfig.from_json(parsed["vae"] | {"decoder_base_dim": None}, "x")
    assert config.decoder_base_dim == config.base_dim


REQUIRED = {
    "transformer": [
        "_class_name",
        "patch_size",
        "causal_condition",
        "in_channels",
        "out_channels",
        "num_layers",
        "attention_head_dim",
        "num_attention_heads",
        "context_in_dim",
        "mlp_ratio",
        "axes_dims_rope",
        "eps",
    ],
    "text_encoder": [
        "model_type",
        "architectures",
        "text_config",
        "text_config.model_type",
        "text_config.hidden_act",
        "text_config.attention_bias",
        "text_config.vocab_size",
        "text_config.hidden_size",
        "text_config.intermediate_size",
        "text_config.num_hidden_layers",
        "text_config.num_attention_heads",
        "text_config.num_key_value_heads",
        "text_config.head_dim",
        "text_config.rms_norm_eps",
        "text_config.rope_parameters.rope_theta",
        "text_config.rope_parameters.rope_type",
        "text_config.rope_parameters.mrope_section",
        "text_config.rope_parameters.mrope_interleaved",
    ],
    "text_encoder4": [
        "text_config.rope_theta",
        "text_config.rope_scaling",
        "text_config.rope_scaling.rope_type",
        "text_config.rope_scaling.mrope_section",
        "text_config.rope_scaling.mrope_interleaved",
    ],
    "vae": [
        "_class_name",
        "is_residual",
        "attn_scales",
        "patch_size",
        "in_channels",
        "out_channels",
        "scale_factor_spatial",
        "base_dim",
        "decoder_base_dim",
        "z_dim",
        "dim_mult",
        "num_res_blocks",
        "temperal_downsample",
        "latents_mean",
        "latents_std",
    ],
}


@pytest.mark.parametrize(("component", "path"), [(name, path) for name, paths in REQUIRED.items() for path in paths])
def test_missing_key(parsed: dict[str, dict[str, Any]], component: str, path: str) -> None:
    config = copy.deepcopy(parsed[component])
    *parents, key = path.split(".")
    holder = config
    for parent in parents:
        holder = holder[parent]
    del holder[key]
    with pytest.raises(QwenImageError, match=rf"^a/config\.json: key '{path}' is missing, expected "):
        CLASSES[component.rstrip("4")].from_json(config, "a/config.json")


REFUSED = [
    ("transformer", "_class_name", "QwenImageTransformer2DModel"),
    ("transformer", "patch_size", 2),
    ("transformer", "patch_size", True),
    ("transformer", "causal_condition", False),
    ("transformer", "causal_condition", 1),
    ("transformer", "num_layers", 0),
    ("transformer", "num_layers", 2.0),
    ("transformer", "num_layers", True),
    ("transformer", "num_layers", "2"),
    ("transformer", "out_channels", 8),
    ("transformer", "out_channels", None),
    ("transformer", "mlp_ratio", 2.5),
    ("transformer", "axes_dims_rope", [8, 12, 14]),
    ("transformer", "axes_dims_rope", [9, 11, 12]),
    ("transformer", "axes_dims_rope", [16, 16]),
    ("transformer", "axes_dims_rope", 32),
    ("transformer", "eps", 0),
    ("transformer", "eps", float("nan")),
    ("transformer", "eps", "1e-6"),
    ("transformer", "quantization_config", {"quant_method": "bitsandbytes"}),
    ("text_encoder", "model_type", "qwen2_5_vl"),
    ("text_encoder", "architectures", ["Qwen3VLMoeForConditionalGeneration"]),
    ("text_encoder", "text_config", 3),
    ("text_encoder", "text_config.model_type", "qwen3"),
    ("text_encoder", "text_config.hidden_act", "gelu"),
    ("text_encoder", "text_config.attention_bias", True),
    ("text_encoder", "text_config.num_key_value_heads", 3),
    ("text_encoder", "text_config.num_key_value_heads", None),
    ("text_encoder", "text_config.head_dim", 15),
    ("text_encoder", "text_config.rope_theta", 1e4),
    ("text_encoder", "text_config.rope_parameters.rope_type", "yarn"),
    ("text_encoder", "text_config.rope_parameters.mrope_interleaved", False),
    ("text_encoder", "text_config.rope_parameters.mrope_section", [4, 2, 3]),
    ("text_encoder", "text_config.rope_parameters.partial_rotary_factor", 0.5),
    ("text_encoder4", "text_config.rope_scaling", None),
    ("text_encoder4", "text_config.rope_scaling.rope_type", "dynamic"),
    ("text_encoder4", "text_config.rope_theta", -1),
    ("text_encoder", "vision_config", None),
    ("text_encoder", "vision_config.deepstack_visual_indexes", [0, 1, 2, 3]),
    ("text_encoder", "vision_config.deepstack_visual_indexes", [1, 0]),
    ("transformer", "attention", "sliding"),
    ("vision", "vision_config.model_type", "qwen2_5_vl"),
    ("vision", "vision_config.hidden_act", "silu"),
    ("vision", "vision_config.in_channels", 4),
    ("vision", "vision_config.patch_size", 14),
    ("vision", "vision_config.spatial_merge_size", 1),
    ("vision", "vision_config.temporal_patch_size", 1),
    ("vision", "vision_config.num_heads", 3),
    ("vision", "vision_config.num_position_embeddings", 65),
    ("vision", "vision_config.out_hidden_size", 65),
    ("vision", "vision_config.deepstack_visual_indexes", [0, 1, 4]),
    ("vision", "vision_config.rope_parameters.rope_type", "default"),
    ("vae", "_class_name", "AutoencoderKLQwenImage"),
    ("vae", "is_residual", False),
    ("vae", "attn_scales", [0.5]),
    ("vae", "patch_size", 2),
    ("vae", "in_channels", 3),
    ("vae", "out_channels", 3),
    ("vae", "scale_factor_spatial", 8),
    ("vae", "dim_mult", [1, 2, 4, 4]),
    ("vae", "dim_mult", [1, 2, 4, 4, 8]),
    ("vae", "dim_mult", [1, 16, 4, 4, 4]),
    ("vae", "dim_mult", [1, 2, 4, 4, 0]),
    ("vae", "temperal_downsample", [False, True, True]),
    ("vae", "temperal_downsample", [0, 1, 1, 1]),
    ("vae", "latents_mean", [0.0] * 15),
    ("vae", "latents_std", [1.0] * 17),
    ("vae", "latents_std", [1.0] * 15 + [0.0]),
    ("vae", "z_dim", -16),
]


@pytest.mark.parametrize(("component", "path", "value"), REFUSED)
def test_refused_value(parsed: dict[str, dict[str, Any]], component: str, path: str, value: Any) -> None:
    config = copy.deepcopy(parsed[component])
    *parents, key = path.split(".")
    holder = config
    for parent in parents:
        holder = holder[parent]
    holder[key] = value
    with pytest.raises(QwenImageError, match=r"^a/config\.json: key '.*' is .*, expected ") as raised:
        CLASSES_OF_CASES[component.rstrip("4")].from_json(config, "a/config.json")
    assert f"'{path}'" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["transformer", "text_encoder", "text_encoder4", "vision", "vae"])
def test_no_value_is_refused_without_words(parsed: dict[str, dict[str, Any]], name: str) -> None:
    for change, other in changed(parsed[name]):
        try:
            CLASSES_OF_CASES[name.rstrip("4")].from_json(other, "a/config.json")
        except QwenImageError:
            continue
        except Exception as error:
            pytest.fail(f"{change}: {error!r}")


def test_not_an_object() -> None:
    with pytest.raises(QwenImageError, match=r"^x: the file holds \[1\], expected a JSON object$"):
        TransformerConfig.from_json([1], "x")  # type: ignore[arg-type]


def test_attention_is_causal_or_bidirectional(parsed: dict[str, dict[str, Any]]) -> None:
    values = parsed["transformer"]
    plain, unlike = TransformerConfig.from_json(values, "x"), values | {"causal_condition": False}
    assert not plain.bidirectional
    with pytest.raises(QwenImageError, match=r"'causal_condition' is false, expected true .*--attention bidirectional"):
        TransformerConfig.from_json(unlike, "x")
    with pytest.raises(QwenImageError, match=r"'causal_condition' is false, expected true with causal attention"):
        TransformerConfig.from_json(unlike, "x", attention="causal")
    for found in (
        TransformerConfig.from_json(values, "x", attention="bidirectional"),
        TransformerConfig.from_json(unlike, "x", attention="bidirectional"),
        TransformerConfig.from_json(unlike | {"attention": "bidirectional"}, "x"),
    ):
        assert found.bidirectional
        assert found != plain
    stated = values | {"attention": "bidirectional"}
    assert TransformerConfig.from_json(stated, "x").bidirectional
    assert TransformerConfig.from_json(stated, "x", attention="causal") == plain


def test_components_of_different_models(parsed: dict[str, dict[str, Any]]) -> None:
    transformer = TransformerConfig.from_json(parsed["transformer"], "x")
    text = TextEncoderConfig.from_json(parsed["text_encoder"], "x")
    vae = VaeConfig.from_json(parsed["vae"], "x")
    wide = TransformerConfig.from_json(parsed["transformer"] | {"context_in_dim": 65}, "x")
    with pytest.raises(QwenImageError, match="'context_in_dim' is 65, expected 64"):
        check_components(wide, text, vae)
    deep = TransformerConfig.from_json(parsed["transformer"] | {"in_channels": 17, "out_channels": 17}, "x")
    with pytest.raises(QwenImageError, match="'in_channels' is 17, expected 16"):
        check_components(deep, text, vae)
    check_components(transformer, text, vae)
