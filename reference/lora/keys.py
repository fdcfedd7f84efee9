"""Keys of adapter files: the linear of an entry, and its part of the low-rank update.

Spellings, from diffusers 0.42 (`lora_conversion_utils`, `state_dict_utils`) and ComfyUI (`comfy/lora.py`):

    transformer.transformer_blocks.0.attn.to_q.lora_A.weight          diffusers, PEFT
    diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight      ComfyUI
    transformer_blocks.0.attn.to_q.lora_down.weight                   no prefix
    lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight         kohya, dots written as underscores

each with any of the endings below. ComfyUI stacks gate_layer and proj, so a linear may be called img_mlp.gate_up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from qwen_image_engine.reference.storage.single_file import HALVES, STACKED

Part = Literal["down", "up", "alpha"]

PREFIXES = ("transformer.", "diffusion_model.")
FLAT_PREFIX = "lora_unet_"
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


def linear_names(weights: Iterable[str]) -> dict[str, str]:
    """Map every name that an adapter file may use for a linear, without the prefix, to the linear's name here.

    Names of two stacked linears are included; see `single_file.halves`.

    Args:
        weights: names of the linears' weights.
    """
    linears = [weight.removesuffix(".weight") for weight in weights]
    gate, _ = HALVES
    linears += [name.removesuffix(gate) + STACKED for name in linears if name.endswith(f".{gate}")]
    return {name: name for name in linears} | {FLAT_PREFIX + name.replace(".", "_"): name for name in linears}


def split_key(key: str) -> tuple[str, Part] | None:
    """Split a key into the linear's name, without a prefix, and the part. None if it has none of the endings."""
    for ending, part in ENDINGS.items():
        if key.endswith(ending):
            stem = key.removesuffix(ending)
            prefix = next((prefix for prefix in PREFIXES if stem.startswith(prefix)), "")
            return stem.removeprefix(prefix), part
    return None
