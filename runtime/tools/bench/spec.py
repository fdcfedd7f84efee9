"""Contenders of a benchmark as plain data: their names, and what one needs to load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qwen_image_engine.engines.backends import ENGINES
from qwen_image_engine.runtime.components import Memory

INSTALL = "pip install 'qwen-image-engine[export]'"

INSTALL_DIFFUSERS = f"{INSTALL} diffusers transformers torchvision"


@dataclass(frozen=True)
class Peer:
    """An implementation that runs the checkpoint itself.

    Attributes:
        name: the word that `--baseline` takes.
        load: entry of the function that loads it, as (WaySpec, MemoryWatch or None) -> Drawer.
        install: the command that installs its packages.
    """

    name: str
    load: str
    install: str


_TORCH = "reference.baselines.torch:load_torch"
_DIFFUSERS = "reference.baselines.diffusers:load_diffusers"

PEERS: Mapping[str, Peer] = {
    row.name: row
    for row in (
        Peer("torch", _TORCH, INSTALL),
        Peer("torch-compile", _TORCH, INSTALL),
        Peer("diffusers", _DIFFUSERS, INSTALL_DIFFUSERS),
        Peer("diffusers-bf16", _DIFFUSERS, INSTALL_DIFFUSERS),
    )
}
"""The reference in fp32, the same with its transformer's blocks compiled, and diffusers' own pipeline, in fp32 and in
the precision that its users take."""

CHECK_WEIGHTS = "reference.baselines.checkpoint:check_weights"
"""Entry of the function that compares a peer's weights with the bundle's, as (WaySpec)."""

PIPELINE_FOLDER = "reference.baselines.checkpoint:pipeline_folder"
"""Entry of the function that finds the folder of a diffusers pipeline, as (pipeline, Manifest) -> str."""

BASELINES = (*PEERS, *ENGINES)


@dataclass(frozen=True)
class WaySpec:
    """A way by name, and what it needs to load; plain values, for it travels to a process of its own.

    Attributes:
        name: one of `ENGINES` or `PEERS`.
        role: "engine" or "baseline".
        bundle: the folder.
        checkpoint: of peers, None for the one that the manifest names.
        threads: None for every core.
        memory: "resident" or "sequential"; diffusers holds everything.
        resolution: side in pixels of reference images.
        hashes: whether a peer compares its weights' hash with the bundle's when it has loaded.
    """

    name: str
    role: str
    bundle: str
    checkpoint: str | None
    threads: int | None
    memory: Memory
    resolution: int
    hashes: bool = False
