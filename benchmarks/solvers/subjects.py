"""Requests that solvers and caches are measured on, on three transformers: a trained one, and two with random blocks.

Prefix keys and values, noise and sigmas are those of the reference's pipeline.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common.paths import PROMPTS, SHAPES
from benchmarks.common.released_configs import released_configs
from benchmarks.common.wide_checkpoint import write_wide_checkpoint
from benchmarks.solvers.block_cache import CachedStep, CacheSetting
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import load_network
from qwen_image_engine.reference.networks.transformer import KeyValue, Transformer
from qwen_image_engine.reference.networks.vae import Vae
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.conditioning import Conditioning
from qwen_image_engine.runtime.model.latents import unpack_latents
from qwen_image_engine.runtime.model.rope import rotary_tables
from qwen_image_engine.runtime.model.sequence import ImageBlock, TokenSequence
from qwen_image_engine.runtime.model.size import latent_size
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.sampling.inputs import SamplingInputs
from qwen_image_engine.runtime.sampling.solver import integrate

Latents = NDArray[np.float32]

BLOCKS: int = released_configs()["transformer"]["num_layers"]
"""Number of random blocks: the released depth, 32."""

NEVER = CacheSetting(head=1, threshold=0)


@dataclass(frozen=True)
class Subject:
    """A transformer to measure on.

    Attributes:
        name: name of the transformer.
        side: width and height of the pictures [pixels].
        requests: number of prompts, each with its own seed.
        solution_steps: number of Heun's steps that are taken for the solution.
        trained: whether the latents are pictures, which are then compared decoded.
    """

    name: str
    side: int
    requests: int
    solution_steps: int
    trained: bool


AS_TRAINED = Subject("`shapes`", 256, 8, 100, trained=True)
RANDOM_BLOCKS = Subject(f"{BLOCKS} random blocks", 128, 2, 64, trained=False)
RANDOM = Subject(f"{BLOCKS} random blocks, and time embedding", 128, 1, 250, trained=False)
SUBJECTS = {"shapes": AS_TRAINED, "random-blocks": RANDOM_BLOCKS, "random": RANDOM}


class Requests:
    """The requests of a subject. `sample` integrates one; `decode` decodes its latents with the VAE of `shapes`."""

    def __init__(self, subject: Subject, prompts: Sequence[str] | None = None) -> None:
        """Load the networks. `prompts` is None for the first of benchmarks/prompts.txt."""
        if prompts is None:
            prompts = PROMPTS.read_text(encoding="utf-8").splitlines()[: subject.requests]
        self.subject = subject
        self.prompts = prompts
        checkpoint = Checkpoint.open(SHAPES)
        self.network = _network(subject, checkpoint)
        self._pipeline = reference_pipeline(checkpoint)
        vae = load_network(checkpoint, "vae")
        assert isinstance(vae, Vae)
        self._vae = vae

    @property
    def pipeline(self) -> QwenImage:
        """The reference's pipeline of `shapes`, whose text encoder, noise and schedule all subjects share."""
        return self._pipeline

    def step(self, request: int, setting: CacheSetting = NEVER) -> CachedStep:
        """Return the velocity function of a request, with an empty cache."""
        conditioning = self._pipeline.encode(self.prompts[request])
        target = _layout(conditioning, self.subject.side).target
        cos, sin = rotary_tables(target, self.network.config.axes_dims_rope)
        return CachedStep(self.network, cos, sin, prefix(self.network, conditioning), setting)

    def sample(self, request: int, solver: str, steps: int, step: CachedStep) -> Latents:
        """Integrate a request, whose number is the seed of its noise, and return the latents (1, N, C) at sigma 0."""
        side, channels = self.subject.side, self.network.config.in_channels
        inputs = SamplingInputs.prepare(
            self._pipeline.schedule, channels, side, side, steps, request, 1, None, solver=solver
        )
        latents = inputs.latents
        for taken in integrate(step, latents, inputs.stages):
            latents = taken.latents
        return latents

    def decode(self, latents: Latents) -> NDArray[np.float32]:
        """Decode latents (1, N, C) to a picture (4, height, width) in [0, 1], not rounded to bytes."""
        rows, columns = latent_size(self.subject.side, self.subject.side)
        with torch.inference_mode():
            image = self._vae.decode(torch.as_tensor(unpack_latents(latents, rows, columns)))
        picture: NDArray[np.float32] = image[0].numpy() * np.float32(0.5) + np.float32(0.5)
        return picture


def prefix(network: Transformer, conditioning: Conditioning) -> list[KeyValue]:
    """Return the network's keys and values of an encoded prompt without reference images."""
    positions = _layout(conditioning, side=32).prefix
    cos, sin = rotary_tables(positions, network.config.axes_dims_rope)
    with torch.inference_mode():
        states = torch.as_tensor(conditioning.text_states)
        return network.prefix(states, torch.as_tensor(cos), torch.as_tensor(sin))


def _layout(conditioning: Conditioning, side: int) -> TokenSequence:
    return TokenSequence.of(conditioning.segments, ImageBlock(*latent_size(side, side)))


def _network(subject: Subject, checkpoint: Checkpoint) -> Transformer:
    if subject == RANDOM:
        with tempfile.TemporaryDirectory() as folder:
            write_wide_checkpoint(Path(folder) / "wide", heads=1, blocks=BLOCKS)
            network = load_network(Checkpoint.open(Path(folder) / "wide"), "transformer")
            network.load_state_dict(
                {name: tensor.clone() for name, tensor in network.state_dict().items()}, assign=True
            )
    else:
        network = load_network(checkpoint, "transformer")
    assert isinstance(network, Transformer)
    return _with_random_blocks(network) if subject == RANDOM_BLOCKS else network


def _with_random_blocks(trained: Transformer) -> Transformer:
    """Return a network of `BLOCKS` blocks with normal noise of variance 2 / (rows + columns) (Glorot) for matrices.

    Everything outside the blocks is the trained network's, so that the velocity depends on sigma as smoothly as a
    trained one's; a random time embedding turns over the whole velocity from one of 40 steps to the next. The norms of
    the blocks are the trained ones, which repeat.
    """
    generator = torch.Generator().manual_seed(0)
    network = Transformer(replace(trained.config, num_layers=BLOCKS)).eval().requires_grad_(False)
    state = dict(trained.state_dict())
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 2 and name.startswith("transformer_blocks."):
            noise = torch.randn(tensor.shape, generator=generator)
            state[name] = noise * math.sqrt(2 / sum(tensor.shape))
        elif name.startswith("transformer_blocks."):
            _, block, rest = name.split(".", 2)
            state[name] = state[f"transformer_blocks.{int(block) % trained.config.num_layers}.{rest}"]
    network.load_state_dict(state)
    return network
