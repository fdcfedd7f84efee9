"""A copy of the small checkpoint whose transformer has random weights and any width."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.common.paths import SHAPES as SMALL
from qwen_image_engine.reference.checkpoint.config import TransformerConfig
from qwen_image_engine.reference.networks.transformer import Transformer

# SiLU passes on a fraction of what comes in: without it the gates of random weights would be nearly shut, and an error
# inside a block would hardly show in the velocity.
_TIME_GAIN = 2.0


def write_wide_checkpoint(folder: Path, heads: int, blocks: int) -> None:
    """Write a checkpoint with `blocks` blocks of `heads` heads of 128 channels, in bf16.

    The latents' channels and the context's width are the small checkpoint's.
    """
    shutil.copytree(SMALL, folder)
    file = folder / "transformer" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {
        "num_layers": blocks,
        "num_attention_heads": heads,
        "attention_head_dim": 128,
        "axes_dims_rope": [16, 56, 56],
    }
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    with torch.device("meta"):
        shapes = Transformer(TransformerConfig.from_json(config, "config")).state_dict()
    generator = torch.Generator().manual_seed(0)
    save_file(
        {name: _weight(name, tensor.shape, generator) for name, tensor in shapes.items()},
        folder / "transformer" / "diffusion_pytorch_model.safetensors",
        {"format": "pt"},
    )


def _weight(name: str, shape: Any, generator: torch.Generator) -> torch.Tensor:
    """Return a random weight. Linears keep the magnitude of their input; norms scale by about 1."""
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        value = 0.1 * noise + (0 if "text_norm" in name else 1)
    else:
        value = noise * (_TIME_GAIN if "timestep_embedder" in name else 1) / shape[1] ** 0.5
    return value.to(torch.bfloat16)
