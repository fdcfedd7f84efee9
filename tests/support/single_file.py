"""A checkpoint's transformer as one file in ComfyUI's spelling."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def write_single_file(checkpoint: Path, path: Path, prefix: str = "model.diffusion_model.") -> Path:
    """Write the transformer of a folder to `path`: `prefix` before each key, gate rows stacked on those of proj."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted((checkpoint / "transformer").glob("*.safetensors")):
        tensors |= load_file(file)
    for gate in [name for name in tensors if name.endswith(".img_mlp.gate_layer.weight")]:
        block = gate.removesuffix("gate_layer.weight")
        tensors[f"{block}gate_up.weight"] = torch.cat([tensors.pop(gate), tensors.pop(f"{block}proj.weight")])
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, path)
    return path
