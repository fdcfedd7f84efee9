"""The writer of the trained networks as a checkpoint in the released layout, which diffusers loads too."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from qwen_image_engine.reference.checkpoint.config import TransformerConfig, VaeConfig, VisionConfig
from qwen_image_engine.reference.networks.vae import Vae
from qwen_image_engine.reference.shapes.config import vae_config
from qwen_image_engine.reference.shapes.training.tokenizer import SPECIAL
from qwen_image_engine.reference.shapes.training.transformer import Denoiser

CARD = """---
license: apache-2.0
---

# shapes

A small checkpoint in the layout of Qwen-Image-2.1, trained from scratch by
`qwen_image_engine.reference.shapes.training.train` on pictures that the recipe draws itself. It draws one to three
coloured shapes on a 3x3 grid, on coloured or transparent grounds, from prompts in English and Chinese, 128 to 256
pixels a side, and edits one or two such pictures.
The language model's head is present, as the layout wants it, and untrained.
"""
# Renders a conversation as the released processor's template does; nothing else of that template is used.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part -%}{{ part.text }}{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def write_checkpoint(folder: Path, vae: Vae, model: Denoiser, tokenizer: Tokenizer, seed: int) -> None:
    """Write the checkpoint to `folder`, with weights in bf16.

    Args:
        folder: Folder of the checkpoint; created if missing.
        vae: Trained autoencoder.
        model: Trained embedding table, vision tower, text encoder and transformer, and the statistics of the latents.
        tokenizer: Tokenizer that they were trained with.
        seed: Seed of the untrained weights: the language model's head.

    """
    config = vae_config(tuple(model.mean.tolist()), tuple(model.std.tolist()))
    diffusers = {"_diffusers_version": "0.42.1"}
    transformer = _transformer_json(model.transformer.config) | diffusers
    _write_json(folder / "model_index.json", _INDEX | diffusers)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    _write_json(folder / "transformer" / "config.json", transformer)
    _write_json(folder / "vae" / "config.json", _vae_json(config) | diffusers)
    _write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULER | diffusers)
    _write_json(folder / "text_encoder" / "config.json", _text_encoder_json(model, tokenizer))
    _write_processor(folder / "processor", tokenizer)
    generator = torch.Generator().manual_seed(seed)
    _save(folder / "transformer" / "diffusion_pytorch_model.safetensors", dict(model.transformer.state_dict()))
    _save(folder / "vae" / "diffusion_pytorch_model.safetensors", vae.state_dict() | _time_convolutions(config))
    language = {f"model.language_model.{name}": value for name, value in model.reader.encoder.state_dict().items()}
    width = model.reader.encoder.config.hidden_size
    language["model.language_model.embed_tokens.weight"] = model.reader.embed_tokens.weight
    language["model.language_model.norm.weight"] = torch.ones(width)
    language["lm_head.weight"] = 0.02 * torch.randn(model.reader.embed_tokens.weight.shape, generator=generator)
    language |= {f"model.visual.{name}": value for name, value in model.reader.vision.state_dict().items()}
    _save(folder / "text_encoder" / "model.safetensors", language)


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({k: v.detach().to(torch.bfloat16).contiguous() for k, v in tensors.items()}, path, {"format": "pt"})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


_INDEX: dict[str, Any] = {
    "_class_name": "QwenImage21Pipeline",
    "processor": ["transformers", "Qwen3VLProcessor"],
    "sample_sigmas": None,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3VLForConditionalGeneration"],
    "transformer": ["diffusers", "QwenImage21Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage21"],
}
# The released base checkpoint's schedule.
_SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}


def _transformer_json(config: TransformerConfig) -> dict[str, Any]:
    values = {k: v for k, v in asdict(config).items() if k not in ("bidirectional", "ignored")}
    return {"_class_name": "QwenImage21Transformer2DModel", "patch_size": 1, "causal_condition": True} | values


def _vae_json(config: VaeConfig) -> dict[str, Any]:
    fixed = {
        "_class_name": "AutoencoderKLQwenImage21",
        "attn_scales": [],
        "dropout": 0.0,
        "is_residual": True,
        "patch_size": None,
        "scale_factor_spatial": 16,
        "scale_factor_temporal": 8,
    }
    return fixed | {k: v for k, v in asdict(config).items() if k != "ignored"}


def _text_encoder_json(model: Denoiser, tokenizer: Tokenizer) -> dict[str, Any]:
    config = model.reader.encoder.config
    beside = ("ignored", "rope_theta", "mrope_section", "deepstack")
    text = {k: v for k, v in asdict(config).items() if k not in beside} | {
        "model_type": "qwen3_vl_text",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": list(config.mrope_section),
            "rope_theta": config.rope_theta,
            "rope_type": "default",
        },
        "use_cache": True,
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "dtype": "bfloat16",
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "tie_word_embeddings": False,
        "text_config": text,
        "vision_config": _vision_json(model.reader.vision.config),
    }


def _vision_json(config: VisionConfig) -> dict[str, Any]:
    return {
        "depth": config.depth,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_heads": config.num_heads,
        "num_position_embeddings": config.position_side**2,
        "model_type": "qwen3_vl_vision",
        "deepstack_visual_indexes": list(config.deepstack),
        "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3,
        "initializer_range": 0.02,
        "out_hidden_size": config.out_hidden_size,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def _write_processor(folder: Path, tokenizer: Tokenizer) -> None:
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "extra_special_tokens": list(SPECIAL[1:]),
            "model_max_length": 4096,
            "pad_token": "<|endoftext|>",
            "processor_class": "Qwen3VLProcessor",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    image = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "merge_size": 2,
        "patch_size": 16,
        "resample": 3,
        "rescale_factor": 1 / 255,
        # Areas in pixels: a picture of 32x32 is one image slot, and none of the sizes here is enlarged.
        "size": {"longest_edge": 16777216, "shortest_edge": 1024},
        "temporal_patch_size": 2,
    }
    _write_json(
        folder / "processor_config.json",
        {
            "image_processor": image | {"image_processor_type": "Qwen2VLImageProcessor"},
            "processor_class": "Qwen3VLProcessor",
            "video_processor": image | {"video_processor_type": "Qwen3VLVideoProcessor"},
        },
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))


def _time_convolutions(config: VaeConfig) -> dict[str, Tensor]:
    """Return zeros for the layers that one frame never reaches."""
    tensors = {}
    down = [config.base_dim * m for m in config.dim_mult]
    up = [config.decoder_base_dim * m for m in config.dim_mult[::-1]]
    for i, temporal in enumerate(config.temperal_downsample):
        if temporal:
            tensors[f"encoder.down_blocks.{i}.downsampler.time_conv"] = (down[i], down[i])
    for i, temporal in enumerate(config.temperal_downsample[::-1]):
        if temporal:
            tensors[f"decoder.up_blocks.{i}.upsampler.time_conv"] = (2 * up[i], up[i])
    return {f"{n}.weight": torch.zeros(o, i, 1, 1) for n, (o, i) in tensors.items()} | {
        f"{n}.bias": torch.zeros(o) for n, (o, _) in tensors.items()
    }
