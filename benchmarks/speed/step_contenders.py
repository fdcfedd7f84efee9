"""The contenders of the speed benchmark: one cached step of the transformer, and every way to run it."""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common.diffusers_classes import QwenImage21KVCache, QwenImage21Transformer2DModel
from qwen_image_engine.engines.core.contract import contract
from qwen_image_engine.engines.core.contract_check import Array
from qwen_image_engine.engines.core.engine import Engine
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.onnxruntime.cpu import OnnxRuntimeEngine
from qwen_image_engine.engines.openvino.cpu import OpenVinoEngine
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.components import dims
from qwen_image_engine.reference.load import empty_network
from qwen_image_engine.reference.networks.transformer import Transformer
from qwen_image_engine.reference.torch_engine import TorchEngine
from qwen_image_engine.runtime.bundle.manifest_entries import ComponentEntry
from qwen_image_engine.runtime.model.rope import rotary_tables
from qwen_image_engine.runtime.model.sequence import TokenSequence
from qwen_image_engine.runtime.model.time import time_features

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIGMA = 0.5  # a bf16 number: diffusers rounds the timestep to its weights' dtype, which is no error of its step


@dataclass(frozen=True, eq=False)
class Case:
    """A step on a square of `side` x `side` tokens after a prefix, with the contract's inputs."""

    side: int
    prefix: int
    inputs: Mapping[str, Array]


Step = Callable[[], Array]
Way = Callable[[Case], Step]
"""A function that prepares a contender for a case and returns only the step, which is timed."""


def make_case(network: Transformer, tokens: int, prefix: int) -> Case:
    side = math.isqrt(tokens)
    if side * side != tokens or side % 2:
        raise ValueError(f"{tokens} tokens: expected a square of an even number")
    config = network.config
    generator = torch.Generator().manual_seed(tokens)
    layout = TokenSequence.text_to_image(prefix, side, side)
    tables = [rotary_tables(positions, config.axes_dims_rope) for positions in (layout.prefix, layout.target)]
    states = torch.randn(1, prefix, config.context_in_dim, generator=generator)
    with torch.inference_mode():
        cache = network.prefix(states, *map(torch.from_numpy, tables[0]))
    inputs = {
        "latents": torch.randn(1, tokens, config.in_channels, generator=generator).numpy(),
        "time_features": time_features(SIGMA)[None],
        "cos": tables[1][0],
        "sin": tables[1][1],
        **{
            f"{name}_{layer}": tensor.contiguous().numpy()
            for layer, pair in enumerate(cache)
            for name, tensor in zip(("key", "value"), pair, strict=True)
        },
    }
    return Case(side, prefix, inputs)


def engine_way(engine: Engine) -> Way:
    return lambda case: lambda: engine.run(case.inputs)["velocity"]


def load_diffusers(checkpoint: Path, dtype: torch.dtype) -> QwenImage21Transformer2DModel:
    return QwenImage21Transformer2DModel.from_pretrained(checkpoint / "transformer", torch_dtype=dtype).eval()


def share_weights(checkpoint: Checkpoint, model: QwenImage21Transformer2DModel) -> Transformer:
    """Return the reference on the weights of `model`, which have the same names.

    A second copy would take 2.3 GB in fp32.
    """
    network = empty_network(checkpoint, "transformer")
    network.load_state_dict(model.state_dict(), assign=True)
    assert isinstance(network, Transformer)
    return network


def diffusers_way(model: QwenImage21Transformer2DModel) -> Way:
    dtype = model.dtype

    def prepare(case: Case) -> Step:
        cache = QwenImage21KVCache(model.config.num_layers)
        for layer, stored in enumerate(cache.layer_caches):
            stored.store(*(torch.from_numpy(case.inputs[f"{name}_{layer}"]).to(dtype) for name in ("key", "value")))
        slots = case.prefix + case.side**2 // 4  # the encoder's: one for 2 x 2 latent tokens
        arguments = {
            "hidden_states": torch.from_numpy(case.inputs["latents"]).to(dtype),
            # Only their number counts: their keys and values are in the cache.
            "encoder_hidden_states": torch.zeros(1, case.prefix, model.config.context_in_dim, dtype=dtype),
            "timestep": torch.full((1,), SIGMA, dtype=dtype),
            "img_shapes": [[(1, case.side, case.side)]],
            "img_mask": torch.arange(slots)[None] >= case.prefix,
            "kv_cache": cache,
            "kv_cache_mode": "cached",
            "return_dict": False,
        }

        @torch.inference_mode()
        def step() -> Array:
            velocity: Array = model(**arguments)[0].float().numpy()
            return velocity

        return step

    return prepare


def reference_way(checkpoint: Checkpoint, network: Transformer) -> Way:
    return engine_way(TorchEngine(contract("step", dims(checkpoint)), network))


def int8_ways(model: Path, entry: ComponentEntry, threads: int) -> dict[str, Way]:
    """Return the engines on one graph. OpenVINO also runs bf16 between the quantised linears, if the CPU has it."""
    ways = {
        "ONNX Runtime int8": engine_way(OnnxRuntimeEngine(model, entry.contract, threads)),
        "OpenVINO int8, rest fp32": engine_way(OpenVinoEngine(model, entry.contract, threads)),
    }
    try:
        ways["OpenVINO int8, rest bf16"] = engine_way(OpenVinoEngine(model, entry.contract, threads, "bf16"))
    except QwenImageError as error:
        print(f"left out: {error}", file=sys.stderr)
    return ways
