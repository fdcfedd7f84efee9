"""Contenders of a benchmark as plain data: the names, and the values that a contender needs to load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qwen_image_engine.engines.backends import ENGINES
from qwen_image_engine.engines.tensorrt.package import KernelSpecialization
from qwen_image_engine.runtime.component_pool import Memory

INSTALL = "pip install 'qwen-image-engine[export]'"

INSTALL_DIFFUSERS = f"{INSTALL} diffusers transformers torchvision"


@dataclass(frozen=True)
class Peer:
    """An implementation that runs the checkpoint itself.

    Attributes:
        name: the word that `--baseline` takes.
        load: entry of the function that loads it, as (ContenderSpec, MemoryWatch or None) -> Drawer.
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
"""Peers by name: the reference in fp32, the reference with compiled transformer blocks, and the diffusers pipeline in
fp32 and in bf16, the precision that users of diffusers take."""

CHECK_WEIGHTS = "reference.baselines.checkpoint:check_weights"
"""Entry of the function that compares a peer's weights with the bundle's, as (ContenderSpec)."""

PIPELINE_FOLDER = "reference.baselines.checkpoint:pipeline_folder"
"""Entry of the function that finds the folder of a diffusers pipeline, as (pipeline, Manifest) -> str."""

BASELINES = (*PEERS, *ENGINES)


@dataclass(frozen=True)
class ContenderSpec:
    """A contender by name, and the values that it needs to load. They are plain, because they go to another process.

    Attributes:
        name: one of `ENGINES` or `PEERS`.
        role: "engine" or "baseline".
        bundle: folder of the bundle.
        checkpoint: checkpoint of a peer; None for the checkpoint that the manifest names.
        threads: number of threads; None for every core.
        memory: "resident" or "sequential"; diffusers ignores it and holds all networks.
        resolution: side of reference images [pixels].
        hashes: whether a peer compares the hash of its weights with the bundle's hash after loading.
        kernel_specialization: when tensorrt-rtx compiles kernels for the shapes of a call; None for its default.
    """

    name: str
    role: str
    bundle: str
    checkpoint: str | None
    threads: int | None
    memory: Memory
    resolution: int
    hashes: bool = False
    kernel_specialization: KernelSpecialization | None = None
