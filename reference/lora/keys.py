"""Keys of adapter files: the writer, the linear and the part of each entry, and the kinds of adapter that are no LoRA.

Spellings, from diffusers 0.42 (`lora_conversion_utils`, `state_dict_utils`), PEFT 0.21 (`save_and_load`), LyCORIS 3.2
(`wrapper`) and ComfyUI (`comfy/lora.py`):

    transformer.transformer_blocks.0.attn.to_q.lora_A.weight          diffusers, SimpleTuner
    base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight     PEFT
    diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight      ComfyUI
    transformer_blocks.0.attn.to_q.lora_down.weight                   no prefix
    lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight         kohya, dots written as underscores
    lycoris_transformer_blocks_0_attn_to_q.lora_down.weight           LyCORIS, SimpleTuner
    lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight  OneTrainer

each with any of the endings below. ComfyUI stacks gate_layer and proj, so a linear may be called img_mlp.gate_up.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from typing import Literal, NamedTuple

from qwen_image_engine.reference.storage.single_file import HALVES, STACKED

Part = Literal["down", "up", "alpha"]

PEFT = "PEFT"
NO_PREFIX = "no prefix"

PREFIXES: Mapping[str, str] = {"base_model.model.": PEFT, "transformer.": "diffusers", "diffusion_model.": "ComfyUI"}
"""Writers by the prefix of their keys."""

FLAT_PREFIXES: Mapping[str, str] = {"lora_unet_": "kohya", "lycoris_": "LyCORIS", "lora_transformer_": "OneTrainer"}
"""Writers that put underscores in the place of dots, by the prefix of their keys."""

ENDINGS: Mapping[str, Part] = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
}

KINDS: Mapping[str, str] = {
    **dict.fromkeys(("dora_scale", "lora_magnitude_vector"), "DoRA"),
    **dict.fromkeys(("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"), "LoKr"),
    **dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"), "LoHa"),
    "lora_mid": "LoCon with a Tucker core",
    **dict.fromkeys(("oft_blocks", "oft_diag", "oft_R"), "OFT"),
    "boft_R": "BOFT",
    **dict.fromkeys(("a1", "a2", "b1", "b2"), "GLoRA"),
    **dict.fromkeys(("diff", "diff_b"), "full differences of weights"),
    **dict.fromkeys(("w_norm", "b_norm"), "trained norms"),
    **dict.fromkeys(("on_input", "ia3_l"), "IA3"),
    **dict.fromkeys(("vera_lambda_b", "vera_lambda_d"), "VeRA"),
    "lora_diag": "KaSA",
}
"""Kinds of adapter that are no LoRA, by a part of their keys between dots (LyCORIS: `weight_list` of its modules)."""

WHOLE = "weights trained whole (PEFT's modules_to_save or bias)"

_TEXT_ENCODER = re.compile(r"(base_model\.model\.|lycoris_)?text_encoders?(_\d+)?[._]|lora_(prior_)?te\d*_")


class Key(NamedTuple):
    """A key of a low-rank update. `name` is a key of `linear_names`."""

    writer: str
    name: str
    part: Part


def linear_names(weights: Iterable[str]) -> dict[str, str]:
    """Map every name that an adapter file may use for a linear, without a dotted prefix, to the linear's name here.

    Names of two stacked linears are included; see `single_file.halves`.

    Args:
        weights: names of the linears' weights.
    """
    linears = [weight.removesuffix(".weight") for weight in weights]
    gate, _ = HALVES
    linears += [name.removesuffix(gate) + STACKED for name in linears if name.endswith(f".{gate}")]
    flat = {prefix + name.replace(".", "_"): name for prefix in FLAT_PREFIXES for name in linears}
    return {name: name for name in linears} | flat


def without_prefix(key: str) -> tuple[str, str]:
    """Return the writer of a key and the key without the writer's prefix. Flat prefixes stay."""
    for prefix, writer in PREFIXES.items():
        if key.startswith(prefix):
            return writer, key.removeprefix(prefix)
    return next((writer for prefix, writer in FLAT_PREFIXES.items() if key.startswith(prefix)), NO_PREFIX), key


def split_key(key: str) -> Key | None:
    """Split a key into its writer, the linear's name and the part. None if the key has none of the endings."""
    for ending, part in ENDINGS.items():
        if key.endswith(ending):
            writer, name = without_prefix(key.removesuffix(ending))
            return Key(writer, name, part)
    return None


def other_kind(key: str, tensors: Container[str]) -> str | None:
    """Return the kind of adapter that a key without a known ending belongs to. None if no kind is known.

    Args:
        key: key of an adapter file.
        tensors: names of the network's own tensors.
    """
    if key.endswith(".lora_B.bias"):
        return "LoRA with biases (lora_bias)"
    if any(key.split(".", words)[-1] in tensors for words in range(3)):  # behind a prefix of up to two words
        return WHOLE
    return next((KINDS[part] for part in key.split(".") if part in KINDS), None)


def is_text_encoder(key: str) -> bool:
    """Return whether a key belongs to a text encoder."""
    return _TEXT_ENCODER.match(key) is not None
