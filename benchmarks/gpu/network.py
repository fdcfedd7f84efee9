"""The transformer at full size with random weights, created on the device, and its contenders of a step in torch."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.work import synchronise
from qwen_image_engine.reference.checkpoint.config import TransformerConfig
from qwen_image_engine.reference.networks.transformer import KeyValue, Transformer
from qwen_image_engine.runtime.model.rope import rotary_tables
from qwen_image_engine.runtime.model.sequence import TokenSequence
from qwen_image_engine.runtime.model.time import time_features

SIGMA = 0.5

# SiLU passes on a fraction of what comes in: without it the gates of random weights would be nearly shut.
_TIME_GAIN = 2.0

Run = Callable[[], Tensor]
"""A call that runs a step and returns the velocity, (1, tokens, channels)."""


@dataclass(frozen=True)
class Case:
    """The step of a square picture: its inputs on the device, and the prefix's keys and values."""

    side: int
    latents: Tensor
    features: Tensor
    cos: Tensor
    sin: Tensor
    cache: list[KeyValue]


def random_transformer(values: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> Transformer:
    """Return a transformer with random weights. Linears keep the magnitude of their input; norms scale by about 1."""
    with torch.device("meta"):
        network = Transformer(TransformerConfig.from_json(values, "config.json"))
    generator = torch.Generator(device).manual_seed(0)
    weights = {}
    for name, tensor in network.state_dict().items():
        weight = torch.randn(tensor.shape, generator=generator, device=device, dtype=dtype)
        if tensor.ndim == 1:
            weight = 0.1 * weight + (0 if "text_norm" in name else 1)
        else:
            weight *= (_TIME_GAIN if "timestep_embedder" in name else 1) / tensor.shape[1] ** 0.5
        weights[name] = weight
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def prefix_inputs(network: Transformer, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return random states of a prompt, and its rotary tables."""
    weight = network.img_in.weight
    states = torch.randn(1, tokens, network.config.context_in_dim, dtype=weight.dtype, device=weight.device)
    layout = TokenSequence.text_to_image(tokens, 2, 2)
    tables = rotary_tables(layout.prefix, network.config.axes_dims_rope)
    cos, sin = (torch.from_numpy(table).to(weight.device) for table in tables)
    return states, cos, sin


def make_case(network: Transformer, side: int, prefix: tuple[Tensor, Tensor, Tensor]) -> Case:
    """Return the case of a picture of `side` x `side` tokens."""
    weight, config = network.img_in.weight, network.config
    layout = TokenSequence.text_to_image(prefix[0].shape[1], side, side)
    cos, sin = (
        torch.from_numpy(table).to(weight.device) for table in rotary_tables(layout.target, config.axes_dims_rope)
    )
    return Case(
        side,
        torch.randn(1, side * side, config.in_channels, dtype=weight.dtype, device=weight.device),
        torch.from_numpy(time_features(SIGMA)[None]).to(weight.device),
        cos,
        sin,
        [(key.contiguous(), value.contiguous()) for key, value in network.prefix(*prefix)],
    )


def eager(network: Transformer, case: Case) -> Run:
    """Return the step in eager mode."""
    return lambda: network.step(case.latents, case.features, case.cos, case.sin, case.cache)


def graphed(run: Run, device: torch.device) -> Run:
    """Return `run` as one CUDA graph whose inputs stay in place. On a CPU, return `run` itself."""
    if device.type != "cuda":
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and chooses kernels, before anything is captured
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    synchronise(device)
    gc.collect()  # a graph of before that is freed in the middle of a capture breaks it
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        velocity = run()

    def replay() -> Tensor:
        graph.replay()
        return velocity

    return replay


def compiled_blocks(network: Transformer, options: Mapping[str, Any]) -> Transformer:
    """Return a network on the same weights with compiled blocks. One compilation serves all blocks, in seconds."""
    with torch.device("meta"):
        other = Transformer(network.config)
    other.load_state_dict(network.state_dict(), assign=True)
    for block in other.transformer_blocks:
        block.compile(fullgraph=True, dynamic=False, **options)
    return other.eval().requires_grad_(False)


def compiled_step(network: Transformer, options: Mapping[str, Any]) -> Callable[[Case], Run]:
    """Return the step compiled as a whole, once for each size, so that fusion may cross the borders of blocks."""
    step = torch.compile(network.step, fullgraph=True, dynamic=False, **options)
    return lambda case: lambda: step(case.latents, case.features, case.cos, case.sin, case.cache)
