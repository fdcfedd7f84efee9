"""The activations that a calibration observes in each component, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from qwen_image_engine.calibration.rules.blocks import block_size
from qwen_image_engine.calibration.rules.linears import LINEARS
from qwen_image_engine.engines.core.components import COMPONENTS, components_with
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import empty_network


def observed_components(checkpoint: Checkpoint, *, references: bool) -> tuple[str, ...]:
    """Return the names of the components with linears to quantise, in the order in which they run.

    Args:
        checkpoint: the checkpoint of the components.
        references: whether to include components that run only for reference images.
    """
    rows = (row for row in components_with(checkpoint.transformer.attention) if row.network in LINEARS)
    return tuple(row.name for row in rows if references or not row.needs_reference_images)


OUTPUT = ".output"
"""Suffix of a linear's name if its output is observed and not its input."""

_LARGEST_BLOCK = 64
"""Largest block of channels whose mean products are stored. For the inputs of the released transformer, blocks of 64
take 0.4 GB, and products of all channels would take 26 GB."""

_VALUES = "attn.to_v"
# The prefix hands on keys and values alone: what follows the last block's projections reaches nothing.
_READ_IN_LAST_PREFIX_BLOCK = ("attn.to_q", _VALUES)


@dataclass(frozen=True)
class ObservedTensor:
    """An activation to observe.

    Attributes:
        module: name of the linear in the network.
        side: observed side of the linear.
        channels: number of channels of the activation.
        block: size of the blocks of channels whose products are stored; 0 for no products.
    """

    module: str
    side: Literal["input", "output"]
    channels: int
    block: int = 0


def observed_tensors(checkpoint: Checkpoint, component: str) -> Mapping[str, ObservedTensor]:
    """Return the activations to observe by name, in the order of the blocks. Only the checkpoint's configs are read.

    An input has the name of the first linear that reads it: the stored name of the weight without ".weight". The
    transformer's values, which quantised attention reads, are `transformer_blocks.N.attn.to_v.output`.

    Raises:
        QwenImageError: config.json asks for more blocks than are stored, or for widths that no tensor can have.
    """
    name = COMPONENTS[component].network
    linears, prefix = LINEARS[name], checkpoint.components[name].layout.prefix
    network = empty_network(checkpoint, name)
    blocks = linears.blocks.removeprefix(prefix)
    depth = len(network.get_submodule(blocks))  # type: ignore[arg-type]
    observed = {}
    for block in range(depth):
        last_of_prefix = COMPONENTS[component].returns_cache and block == depth - 1
        for end in [group[0] for group in linears.inputs] + ([_VALUES] if name == "transformer" else []):
            if last_of_prefix and end not in _READ_IN_LAST_PREFIX_BLOCK:
                continue
            module = f"{blocks}.{block}.{end}"
            linear = network.get_submodule(module)
            assert isinstance(linear, nn.Linear)
            if end == _VALUES:
                observed[f"{prefix}{module}{OUTPUT}"] = ObservedTensor(module, "output", linear.out_features)
            else:
                channels = linear.in_features
                # Of the network whose weights are rounded with static scales.
                kept = block_size(channels, _LARGEST_BLOCK) if name == "transformer" else 0
                observed[f"{prefix}{module}"] = ObservedTensor(module, "input", channels, kept)
    return observed
