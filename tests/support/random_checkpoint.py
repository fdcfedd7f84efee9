"""Small random-weight checkpoints in the released layout, saved by diffusers and transformers.

    folder = write_checkpoint(tmp_path / "model", "narrow")  # fp32, one file a component
    folder = write_checkpoint(
        tmp_path / "model", "deep", turbo=True, dtype="bfloat16", max_shard_size="500KB", spelling="transformers4"
    )

Writing one takes 0.3 s after diffusers and transformers are imported (4 to 8 s, once a process). Weights depend on the
configuration, the component and `seed` alone: `turbo`, `dtype`, `spelling` and sharding leave them as they are, up to
rounding. Every norm weight, bias and `time_conv` is random too, so a wrong or forgotten one changes the output.

`conftest.py` has the session fixture `random_checkpoint(name="narrow", **options) -> Path`, which writes each variant
once. Treat what it returns as read-only: copy it, or call `write_checkpoint`, to damage it.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from tests.support.random_configurations import CONFIGURATIONS, Configuration
from tests.support.random_processor import Spelling, write_json, write_processor

# Turbo's own grid, from model_index.json of the released Turbo checkpoint.
TURBO_SIGMAS = (1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568)


def write_checkpoint(
    folder: Path,
    name: str = "narrow",
    *,
    seed: int = 0,
    turbo: bool = False,
    dtype: str = "float32",
    vae_dtype: str | None = None,
    max_shard_size: str = "5GB",
    spelling: Spelling = "transformers5",
    licence: str | None = "random-weights",
) -> Path:
    """Write one checkpoint into `folder` (made if absent) and return it.

    `dtype` is float32, bfloat16 or float16, for every component unless `vae_dtype` says otherwise. `max_shard_size` as
    in `save_pretrained`; "500KB" splits the transformer and the text encoder of every configuration. `spelling` is that
    of text_encoder/config.json and of the processor's files. `licence` goes into README.md; None: no README.
    """
    import torch
    from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    configuration = CONFIGURATIONS[name]
    folder.mkdir(parents=True, exist_ok=True)
    main_dtype = getattr(torch, dtype)

    transformer = QwenImage21Transformer2DModel(patch_size=1, causal_condition=True, **configuration.transformer)
    randomise(transformer, f"{name}/transformer/{seed}")
    torch.nn.Module.to(transformer, main_dtype).save_pretrained(folder / "transformer", max_shard_size=max_shard_size)

    z_dim = configuration.vae["z_dim"]
    generator = torch.Generator("cpu").manual_seed(seed + 1)
    vae = AutoencoderKLQwenImage21(
        **configuration.vae,
        latents_mean=torch.randn(z_dim, generator=generator).mul(0.3).tolist(),
        latents_std=torch.rand(z_dim, generator=generator).add(0.5).tolist(),
    )
    randomise(vae, f"{name}/vae/{seed}")
    torch.nn.Module.to(vae, getattr(torch, vae_dtype or dtype)).save_pretrained(
        folder / "vae", max_shard_size=max_shard_size
    )

    encoder = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**qwen3_vl_arguments(configuration)))
    randomise(encoder, f"{name}/text_encoder/{seed}")
    encoder.to(dtype=main_dtype).save_pretrained(folder / "text_encoder", max_shard_size=max_shard_size)
    if spelling == "transformers4":
        respell_rope(folder / "text_encoder" / "config.json")

    write_processor(folder / "processor", configuration, spelling)
    write_scheduler(folder / "scheduler", turbo)
    write_model_index(folder, turbo)
    if licence is not None:
        (folder / "README.md").write_text(
            f"---\nlicense: other\nlicense_name: {licence}\n---\n\nRandom.\n", encoding="utf-8"
        )
    return folder


def qwen3_vl_arguments(configuration: Configuration) -> dict[str, Any]:
    """Arguments of `Qwen3VLConfig`, with the tokenizer's ids of the vision tokens."""
    text = dict(configuration.text)
    rope = {
        "rope_type": "default",
        "rope_theta": text.pop("rope_theta"),
        "mrope_section": text.pop("mrope_section"),
        "mrope_interleaved": True,
    }
    vision = dict(configuration.vision)
    side = vision.pop("side")
    vision["deepstack_visual_indexes"] = vision.pop("deepstack")
    return {
        "text_config": {**text, "rope_parameters": rope, "hidden_act": "silu", "attention_bias": False},
        "vision_config": {**vision, "num_position_embeddings": side * side, "out_hidden_size": text["hidden_size"]},
        "image_token_id": configuration.token_id("<|image_pad|>"),
        "video_token_id": configuration.token_id("<|video_pad|>"),
        "vision_start_token_id": configuration.token_id("<|vision_start|>"),
        "vision_end_token_id": configuration.token_id("<|vision_end|>"),
        "tie_word_embeddings": False,
    }


def randomise(module: Any, key: str) -> None:
    """Fill every parameter from a generator seeded by `key`, so that nothing is at a value that hides a mistake.

    Matrices and kernels keep their input's magnitude; norm weights spread around 1 (around 0 where stored minus one).
    """
    import torch

    generator = torch.Generator("cpu").manual_seed(zlib.crc32(key.encode()))
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "text_norm" in name:
                value = 0.3 * noise
            elif name.endswith("gamma") or (parameter.dim() == 1 and name.endswith("weight")):
                value = 1.0 + 0.3 * noise
            elif parameter.dim() == 1:
                value = 0.1 * noise
            elif "embed" in name and "patch_embed" not in name and "timestep_embedder" not in name:
                value = 0.5 * noise
            else:
                value = noise / parameter[0].numel() ** 0.5
            parameter.copy_(value)
    module.eval()


def write_scheduler(folder: Path, turbo: bool) -> None:
    """Write scheduler/scheduler_config.json with the released values, base or Turbo."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=1.0,
        base_image_seq_len=256,
        base_shift=0.5,
        max_image_seq_len=8192,
        max_shift=0.9,
        use_dynamic_shifting=not turbo,
        shift_terminal=None if turbo else 0.02,
        time_shift_type="exponential",
    ).save_pretrained(folder)


def write_model_index(folder: Path, turbo: bool) -> None:
    """Write model_index.json as `QwenImage21Pipeline.save_pretrained` does."""
    index = {
        "_class_name": "QwenImage21Pipeline",
        "_diffusers_version": "0.42.1",
        "processor": ["transformers", "Qwen3VLProcessor"],
        "sample_sigmas": list(TURBO_SIGMAS) if turbo else None,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3VLForConditionalGeneration"],
        "transformer": ["diffusers", "QwenImage21Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage21"],
    }
    write_json(folder / "model_index.json", index)


def respell_rope(path: Path) -> None:
    """Rewrite a transformers 5 Qwen3-VL config as transformers 4 spells it."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config["text_config"], config["vision_config"]):
        rope = part.pop("rope_parameters", None)
        part["torch_dtype"] = part.pop("dtype", None)
        if part is config["text_config"]:
            part["rope_theta"] = rope.pop("rope_theta")
            part["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype", None)
    config["transformers_version"] = "4.57.0"
    write_json(path, config)
