"""The cache key of a network's folder in a bundle: equal keys make equal folders.

Sizes and times of files prove nothing (a download can be resumed, a copy can keep its time). So the key is a hash of
the contents: the weight files' SHA-256, the configuration, the exporter's own source, and the versions of the packages
that trace and write.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from qwen_image_engine.export.targets import Target
from qwen_image_engine.reference.checkpoint.checkpoint import TRANSFORMER, Checkpoint
from qwen_image_engine.runtime.bundle.manifest_entries import Tool

_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript")
_SOURCES = ("calibration", "engines/core", "export", "reference")
_ELSEWHERE = ("reference/shapes", "export/optimum")  # neither decides what is written: a training recipe, an entry


@cache
def tool() -> Tool:
    """Return the exporter's version, with a hash of the sources and packages that decide its output."""
    return Tool(importlib.metadata.version("qwen-image-engine"), source_sha256(Path(__file__).parents[2]))


def source_sha256(home: Path) -> str:
    """Hash the sources in `home` that decide the output of an export, and the versions of the packages that write it.

    Args:
        home: folder of the package, which holds `export`, `reference`, `calibration` and `engines`.
    """
    digest = hashlib.sha256()
    for package in _PACKAGES:
        digest.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    names = [path.relative_to(home) for folder in _SOURCES for path in (home / folder).rglob("*.py")]
    for name in sorted(name for name in names if not any(map(name.is_relative_to, _ELSEWHERE))):
        digest.update(f"{name.as_posix()} {hashlib.sha256((home / name).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def cache_key(
    checkpoint: Checkpoint,
    network: str,
    components: Sequence[str],
    target: Target,
    calibration: str | None,
    weights: str,
    hashes: Mapping[Path, str],
) -> str:
    """Return the cache key of one network's folder.

    Args:
        checkpoint: checkpoint that the network is read from.
        network: name of the network.
        components: components of the network.
        target: row of the target and precision.
        calibration: SHA-256 of the calibration; None if the network uses none.
        weights: "copy" or "link".
        hashes: SHA-256 of the network's weight files and of the adapters' files, by file.
    """
    facts = {
        "tool": tool().source_sha256,
        "network": network,
        "components": list(components),
        "config": [repr(getattr(checkpoint, name)) for name in ("transformer", "text_encoder", "vision", "vae")],
        "target": target.name,
        "precision": target.precision,
        "passes": [lowering.__name__ for lowering in target.passes()],
        "weights": weights,
        "quantisation": repr(target.quantisation),
        "calibration": calibration,
        "files": {file.name: hashes[file] for file in checkpoint.stored(network).files},
        "loras": [
            ([hashes[file] for file in adapter.files], adapter.file.scale)
            for adapter in checkpoint.adapters
            if network == TRANSFORMER
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
