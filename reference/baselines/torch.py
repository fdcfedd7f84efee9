"""The reference pipeline as a contender of a benchmark: eager, or with the transformer's blocks compiled."""

from __future__ import annotations

import torch
from torch import nn

from qwen_image_engine.reference.baselines.checkpoint import open_checkpoint, stored_bytes
from qwen_image_engine.reference.networks.transformer import Transformer
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.system.memory_use import MemoryWatch
from qwen_image_engine.runtime.tools.bench.contender import Runner, pipeline_runner
from qwen_image_engine.runtime.tools.bench.spec import ContenderSpec


def load_torch(spec: ContenderSpec, watch: MemoryWatch | None) -> Runner:
    """Load the reference pipeline in fp32.

    Raises:
        QwenImageError: the checkpoint is missing or damaged, or its configuration is not the one that the bundle was
            made from.
    """
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    checkpoint = open_checkpoint(spec)
    prepare = compile_blocks if spec.name == "torch-compile" else None
    pipeline = reference_pipeline(checkpoint, spec.memory, watch=watch, prepare=prepare)
    return pipeline_runner(pipeline, torch.__version__, "fp32", stored_bytes(checkpoint))


def compile_blocks(network: nn.Module) -> None:
    """Compile the blocks of a transformer in place with one compilation, as diffusers' `compile_repeated_blocks` does.

    Compilation runs at the first call of a block, and again for shapes that it has not seen: in the warm-up of each
    case.
    """
    if isinstance(network, Transformer):
        for block in network.transformer_blocks:
            block.compile()
