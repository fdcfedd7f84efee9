"""What a network's folder in a bundle is made from, as one hash: equal origins make equal folders.

Sizes and times of files prove nothing (a download can be resumed, a copy can keep its time), so the hash covers the
contents: the weight files' SHA-256, the configuration, the exporter's own source and the packages that trace and write.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from qwen_image_engine.calibration.quantise import formats
from qwen_image_engine.engines.core import contract
from qwen_image_engine.export.targets import Recipe
from qwen_image_engine.reference import components as reference_engine
from qwen_image_engine.reference.checkpoint.checkpoint import TRANSFORMER, Checkpoint
from qwen_image_engine.runtime.bundle.manifest import Tool

_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript")


@cache
def tool() -> Tool:
    """This version of the exporter, with a hash of everything that decides what it writes."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        digest.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    export = Path(__file__).parent
    folders = (export, Path(reference_engine.__file__).parent, Path(formats.__file__).parent)
    sources = [path for folder in folders for path in folder.glob("*.py")]
    for path in sorted([*sources, Path(contract.__file__)]):
        digest.update(f"{path.parent.name}/{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return Tool(importlib.metadata.version("qwen-image-engine"), digest.hexdigest())


def origin(
    checkpoint: Checkpoint,
    network: str,
    components: Sequence[str],
    recipe: Recipe,
    calibration: str | None,
    weights: str,
    hashes: Mapping[Path, str],
) -> str:
    """The hash for one network's folder; `hashes` has the SHA-256 of its weight files, `calibration` is that of its."""
    facts = {
        "tool": tool().source_sha256,
        "network": network,
        "components": list(components),
        "config": [repr(getattr(checkpoint, name)) for name in ("transformer", "text_encoder", "vision", "vae")],
        "target": recipe.target,
        "precision": recipe.precision,
        "weights": weights,
        "quantisation": repr(recipe.quantisation),
        "calibration": calibration,
        "files": {file.name: hashes[file] for file in checkpoint.stored(network).files},
        "loras": [(hashes[lora.path], lora.scale) for lora in checkpoint.loras] if network == TRANSFORMER else [],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
