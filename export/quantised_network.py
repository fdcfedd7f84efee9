"""Which linears of a network a recipe quantises and how, from names and shapes alone."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field

from qwen_image_engine.calibration.hadamard import block_size
from qwen_image_engine.calibration.linears import LINEARS, block_index
from qwen_image_engine.calibration.pairs import Pair, linear_pairs
from qwen_image_engine.engines.errors import UsageError
from qwen_image_engine.export.network_tensors import read_tensors
from qwen_image_engine.reference.checkpoint import Checkpoint
from qwen_image_engine.runtime.manifest import QuantisedLayer

WEIGHT = ".weight"


@dataclass(frozen=True)
class Quantisation:
    """What a recipe says of quantisation.

    Attributes:
        largest_rotation: channels that are rotated together, at most.
        exclude: glob patterns of linears that keep their precision.
        skip_blocks: blocks of the transformer whose linears keep it.
    """

    largest_rotation: int
    exclude: tuple[str, ...] = ()
    skip_blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class QuantisedNetwork:
    """The quantised linears by name (a weight's, without ".weight"), and the pairs that are equalised."""

    layers: Mapping[str, QuantisedLayer] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()


def quantised_network(checkpoint: Checkpoint, network: str, quantisation: Quantisation | None) -> QuantisedNetwork:
    """How `quantisation` treats one network; nothing where it is None or the network has no linears to quantise.

    Raises:
        QwenImageError: the tensors are not those of the network.
    """
    if quantisation is None or network not in LINEARS:
        return QuantisedNetwork()
    linears = _linears(checkpoint, network)
    chosen = {name: channels for name, channels in linears.items() if not _stays(network, name, quantisation)}
    pairs = tuple(linear_pairs(checkpoint, network, chosen))
    partners = {pair.first: pair.second for pair in pairs} | {pair.second: pair.first for pair in pairs}
    layers = {
        name: QuantisedLayer(block_size(channels, quantisation.largest_rotation), partners.get(name))
        for name, channels in chosen.items()
    }
    return QuantisedNetwork(layers, pairs)


def check_exclusions(checkpoint: Checkpoint, quantisation: Quantisation | None) -> None:
    """Every pattern must match a linear, and every block to skip must be there.

    Raises:
        UsageError: one does not.
        QwenImageError: the tensors are not those of a network.
    """
    if quantisation is None:
        return
    names = [name for network in LINEARS for name in _linears(checkpoint, network)]
    for pattern in quantisation.exclude:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"--exclude {pattern!r} matches none of the {len(names)} linears that would be quantised; they are "
                f"named like {names[0]} and {names[-1]}"
            )
    layers = checkpoint.transformer.num_layers
    absent = [str(block) for block in quantisation.skip_blocks if not 0 <= block < layers]
    if absent:
        raise UsageError(f"--skip-blocks {','.join(absent)}: the transformer has blocks 0 to {layers - 1}")


def _linears(checkpoint: Checkpoint, network: str) -> dict[str, int]:
    """Input channels of every linear that could be quantised."""
    names = LINEARS[network]
    ends = tuple(f".{name}{WEIGHT}" for name in names.names)
    return {
        tensor.name.removesuffix(WEIGHT): tensor.shape[1]
        for tensor in read_tensors(checkpoint, network)
        if tensor.name.startswith(f"{names.blocks}.") and tensor.name.endswith(ends)
    }


def _stays(network: str, name: str, quantisation: Quantisation) -> bool:
    skipped = network == "transformer" and block_index(name) in quantisation.skip_blocks
    return skipped or any(fnmatch.fnmatchcase(name, pattern) for pattern in quantisation.exclude)
