"""Planted outliers, a test of quantisation: large models have them, and in exact arithmetic they change nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from qwen_image_engine.calibration.quantise.smoothing import for_heads
from qwen_image_engine.calibration.rules.linears import LINEARS
from qwen_image_engine.calibration.rules.pairs import linear_pairs
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint

FACTOR = 60.0
"""Size of an outlier relative to the other channels. The project promises that quantisation tolerates it."""

_ONE_IN = 32


def write_with_outliers(source: Path, target: Path, seed: int = 0) -> Path:
    """Copy a small checkpoint to `target`, with one channel in 32 between paired linears `FACTOR` times as large.

    Rows of the first weight are multiplied, and columns of the second divided. Both networks are held in memory and
    written in float32, so that their outputs equal those of `source` except for float32 rounding.
    """
    shutil.copytree(source, target)
    checkpoint = Checkpoint.open(source)
    generator = torch.Generator("cpu").manual_seed(seed)
    for network in LINEARS:
        component = checkpoint.components[network]
        tensors = {name: component.read(name).float() for name in component.tensors}
        linears = [name.removesuffix(".weight") for name in tensors]
        for pair in linear_pairs(checkpoint, network, linears):
            first, second = f"{pair.first}.weight", f"{pair.second}.weight"
            count = len(tensors[first])
            factors = torch.ones(count)
            factors[torch.randperm(count, generator=generator)[: max(1, count // _ONE_IN)]] = FACTOR
            columns = for_heads(factors, pair.groups, tensors[second].shape[1])
            tensors[first] = tensors[first] * factors[:, None]
            tensors[second] = tensors[second] / columns
        folder = target / network
        for old in folder.glob(f"{component.layout.weights}*"):
            old.unlink()
        save_file(tensors, folder / f"{component.layout.weights}.safetensors", {"format": "pt"})
        _state_dtype(folder / "config.json")
    return target


def _state_dtype(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    if "dtype" in config:
        path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
