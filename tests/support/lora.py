"""Random adapters of a checkpoint's transformer, as files of every spelling."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LINEARS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "img_mlp.proj", "img_mlp.gate_layer", "img_mlp.out")


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The transformer's stored tensors."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted((checkpoint / "transformer").glob("*.safetensors")):
        found |= load_file(file)
    return found


def factors(
    checkpoint: Path, linears: Sequence[str] = LINEARS, rank: int = 4, seed: int = 0
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Linear -> (down, up) for those whose name ends with one of `linears`."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return {
        name.removesuffix(".weight"): (
            torch.randn(rank, weight.shape[1], generator=generator) / weight.shape[1] ** 0.5,
            torch.randn(weight.shape[0], rank, generator=generator) * 0.1,
        )
        for name, weight in weights(checkpoint).items()
        if name.endswith(tuple(f"{linear}.weight" for linear in linears))
    }


def write_lora(
    path: Path,
    updates: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    *,
    name: Callable[[str], str] = "transformer.{}".format,
    endings: tuple[str, str] = (".lora_A.weight", ".lora_B.weight"),
    alpha: float | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write `updates`, each linear called what `name` says; `config` are PEFT's settings as diffusers keeps them."""
    tensors = {}
    for linear, (down, up) in updates.items():
        tensors[name(linear) + endings[0]], tensors[name(linear) + endings[1]] = down.clone(), up.clone()
        if alpha is not None:
            tensors[name(linear) + ".alpha"] = torch.tensor(alpha)
    metadata = {"format": "pt"}
    if config is not None:
        metadata["lora_adapter_metadata"] = json.dumps({f"transformer.{key}": value for key, value in config.items()})
    save_file(tensors, path, metadata)
    return path


def flat(linear: str) -> str:
    """A linear as kohya's trainers write it."""
    return "lora_unet_" + linear.replace(".", "_")
