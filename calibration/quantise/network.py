"""The quantised linears of a network under a recipe, chosen from names and shapes alone."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from qwen_image_engine.calibration.observe.record import Calibration
from qwen_image_engine.calibration.quantise.static_attention import StaticAttention
from qwen_image_engine.calibration.quantise.static_input import StaticInput
from qwen_image_engine.calibration.rules.blocks import block_size
from qwen_image_engine.calibration.rules.linears import LINEARS, WEIGHT, block_index
from qwen_image_engine.calibration.rules.pairs import Pair, linear_pairs
from qwen_image_engine.calibration.rules.quantisation import HIGH, Quantisation
from qwen_image_engine.engines.core.components import COMPONENTS, NETWORKS
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import read_tensors
from qwen_image_engine.reference.storage.tensor_file import TensorInfo
from qwen_image_engine.runtime.bundle.manifest_entries import QuantisedLayer


@dataclass(frozen=True)
class QuantisedNetwork:
    """The quantised linears of a network. Names are names of weights without ".weight".

    Attributes:
        layers: quantisation of each linear by name.
        pairs: pairs whose shared channels are scaled: equalised, or smoothed as the second linear's input.
        inputs: inputs with static scales, by the name of each linear that reads them; empty without static scales.
        attention: FP8 attention by block, the part of names before ".attn".
        cache: keys and values that are held in FP8, by the contracts' names: "key_3", "value_3". No calibration decides
            which.
    """

    layers: Mapping[str, QuantisedLayer] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    inputs: Mapping[str, StaticInput] = field(default_factory=dict)
    attention: Mapping[str, StaticAttention] = field(default_factory=dict)
    cache: frozenset[str] = frozenset()

    def sharing_scale(self, name: str) -> tuple[str, ...]:
        """Return the names of the FP8 linears whose weights have the scale of the FP8 linear `name`, itself among them.

        They are the linears that read the same input. TensorRT for RTX makes one product of them on 8.9, and puts a
        kernel behind it where their scales differ: 604 MB more in a block of 4096 channels at 4,096 tokens. A code of
        FP8 is as precise under a larger scale, down to 1/2^15 of the largest weight.
        """
        item = self.inputs.get(name)
        readers = [] if item is None else [reader.name.removesuffix(WEIGHT) for reader in item.readers]
        found = [other for other in readers if other in self.layers and self.layers[other].precision == "fp8"]
        return tuple(found) or (name,)


def quantised_network(
    checkpoint: Checkpoint, network: str, quantisation: Quantisation | None, calibration: Calibration | None = None
) -> QuantisedNetwork:
    """Return the quantised linears of one network; none if `quantisation` is None or is not for this network.

    Without `calibration` there are no static scales. Sizes and names do not depend on them.

    Raises:
        QwenImageError: the checkpoint's tensors do not match the network.
    """
    if quantisation is None or network not in quantisation.networks:
        return QuantisedNetwork()
    weights = _weights(checkpoint, network)
    precisions = {name: _precision(network, name, quantisation) for name in weights}
    chosen = [name for name, precision in precisions.items() if precision != HIGH]
    inputs: dict[str, StaticInput] = {}
    if quantisation.static:
        pairs = linear_pairs(checkpoint, network, [name for name in chosen if precisions[name] == "int8"])
        for readers in _groups(network, weights):
            wanted = {precisions[name] for name in readers} - {HIGH}
            if wanted and calibration is not None:
                statistics = {
                    component: found[readers[0]]
                    for component, found in calibration.components.items()
                    if COMPONENTS[component].network == network and readers[0] in found
                }
                item = StaticInput([weights[name] for name in readers], "int8" in wanted, statistics)
                inputs |= dict.fromkeys(readers, item)
    else:
        pairs = linear_pairs(checkpoint, network, chosen)
    partners = {pair.first: pair.second for pair in pairs} | {pair.second: pair.first for pair in pairs}
    layers = {
        name: QuantisedLayer(
            precision=precisions[name],
            rotation=block_size(weights[name].shape[1], quantisation.largest_rotation),
            equalised_with=partners.get(name),
        )
        for name in chosen
    }
    attention = {}
    if quantisation.fp8_attention and calibration is not None:
        attention = dict(_attention(checkpoint, network, quantisation, calibration, inputs))
    cache = frozenset(_cache(checkpoint, network, quantisation, pairs))
    return QuantisedNetwork(layers, tuple(pairs), inputs, attention, cache)


def quantised_networks(
    checkpoint: Checkpoint, quantisation: Quantisation | None, calibration: Calibration | None = None
) -> Mapping[str, QuantisedNetwork]:
    """Return the result of `quantised_network` for every network, by name."""
    return {name: quantised_network(checkpoint, name, quantisation, calibration) for name in NETWORKS}


def check_rules(checkpoint: Checkpoint, quantisation: Quantisation | None, precision: str) -> None:
    """Check that every rule has an effect, that blocks to skip exist, and that a linear is left to quantise.

    A rule may have no effect in three cases. Earlier rules keep its linears high, as `--exclude` does. They give
    the linears the same precision. Or the rule matches every linear and so is the default for the rest.

    Args:
        checkpoint: checkpoint with the linears.
        quantisation: the rules; None for no quantisation.
        precision: precision of the bundle, which at least one linear must have.

    Raises:
        UsageError: a rule matches no linear, earlier rules decide on all linears that a rule matches, a block to skip
            does not exist, or no linear has the bundle's precision.
        QwenImageError: the checkpoint's tensors do not match a network.
    """
    if quantisation is None:
        return
    weights = [(network, name) for network in quantisation.networks for name in _weights(checkpoint, network)]
    names = [name for _, name in weights]
    for rule in quantisation.rules:
        matched = [name for name in names if fnmatch.fnmatchcase(name, rule.linears)]
        if not matched:
            raise UsageError(
                f"{rule.linears!r} matches none of the {len(names)} linears that can be quantised; they are named like "
                f"{names[0]} and {names[-1]}"
            )
        kept = [item for item in quantisation.rules if item == rule or item.precision != HIGH]
        earlier = {replace(quantisation, rules=tuple(kept)).rule(name) for name in matched}
        is_default = len(matched) == len(names)  # of the rest, of which there may be none
        if rule not in earlier and not is_default and {item.precision for item in earlier} != {rule.precision}:
            raise UsageError(
                f"the rule {rule.linears!r} ({rule.precision}) decides nothing: the first rule that matches a linear "
                f"does, and all that it matches are matched by {', '.join(sorted(item.linears for item in earlier))!r} "
                "before it; put it in front"
            )
    layers = checkpoint.transformer.num_layers
    absent = [str(block) for block in quantisation.skip_blocks if not 0 <= block < layers]
    if absent:
        raise UsageError(
            f"blocks to skip (--skip-blocks, or a recipe's skip_blocks): {', '.join(absent)}; the transformer has "
            f"blocks 0 to {layers - 1}"
        )
    if not any(_precision(network, name, quantisation) == precision for network, name in weights):
        raise UsageError(
            f"none of the {len(names)} linears is left to have {precision}, the bundle's precision: the first rule "
            "that matches a linear decides, and --exclude and --skip-blocks come before the rules"
        )


def _weights(checkpoint: Checkpoint, network: str) -> dict[str, TensorInfo]:
    """Return the weights of all linears that can be quantised, by the linear's name."""
    names = LINEARS[network]
    ends = tuple(f".{name}{WEIGHT}" for name in names.names)
    return {
        tensor.name.removesuffix(WEIGHT): tensor
        for tensor in read_tensors(checkpoint, network)
        if tensor.name.startswith(f"{names.blocks}.") and tensor.name.endswith(ends)
    }


def _groups(network: str, weights: Mapping[str, TensorInfo]) -> Iterator[tuple[str, ...]]:
    """Yield the groups of linears in a block that read the same input."""
    for group in LINEARS[network].inputs:
        for name in weights:
            if name.endswith(f".{group[0]}"):
                block = name.removesuffix(group[0])
                yield tuple(block + linear for linear in group)


def _attention(
    checkpoint: Checkpoint,
    network: str,
    quantisation: Quantisation,
    calibration: Calibration,
    inputs: Mapping[str, StaticInput],
) -> Iterator[tuple[str, StaticAttention]]:
    """Yield the name and the FP8 attention of every block that is not skipped."""
    tensors = {tensor.name: tensor for tensor in read_tensors(checkpoint, network)}
    components = [found for name, found in calibration.components.items() if COMPONENTS[name].network == network]
    for index in range(checkpoint.transformer.num_layers):
        block = f"{LINEARS[network].blocks}.{index}"
        out = inputs.get(f"{block}.attn.to_out.0")
        if index not in quantisation.skip_blocks:
            yield (
                block,
                StaticAttention(
                    norm_q=tensors[f"{block}.attn.norm_q.weight"],
                    norm_k=tensors[f"{block}.attn.norm_k.weight"],
                    values=[found[f"{block}.attn.to_v.output"] for found in components],
                    smoothed=out if out is not None and out.smooth else None,
                ),
            )


def _cache(checkpoint: Checkpoint, network: str, quantisation: Quantisation, pairs: Collection[Pair]) -> Iterator[str]:
    """Yield the names of the keys and values that are held in FP8: those that an FP8 attention reads.

    Values with smoothed channels are left out. The network's own values, which leave a graph, have other scales.
    """
    if not quantisation.fp8_attention or checkpoint.transformer.bidirectional:
        return
    smoothed = {pair.first for pair in pairs}
    for index in range(checkpoint.transformer.num_layers):
        if index not in quantisation.skip_blocks:
            yield f"key_{index}"
            if f"{LINEARS[network].blocks}.{index}.attn.to_v" not in smoothed:
                yield f"value_{index}"


def _precision(network: str, name: str, quantisation: Quantisation) -> str:
    if network == "transformer" and block_index(name) in quantisation.skip_blocks:
        return HIGH
    return quantisation.precision(name)
