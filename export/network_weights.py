"""What a network's weight file holds, for a recipe: its entries, before a byte is written."""

from __future__ import annotations

from qwen_image_engine.export.equalised_pair import EqualisedPair
from qwen_image_engine.export.int8_weights import Equalised, EqualisedWeight, Int8Scales, Int8Weight, PairScales
from qwen_image_engine.export.network_tensors import read_tensors
from qwen_image_engine.export.quantised_network import WEIGHT, QuantisedNetwork
from qwen_image_engine.export.value_scales import crosses_components, scales_name
from qwen_image_engine.export.weight_file import Entry, Stored
from qwen_image_engine.reference.checkpoint import Checkpoint
from qwen_image_engine.reference.component import FLOAT_DTYPES
from qwen_image_engine.reference.engine import dims


def network_weights(checkpoint: Checkpoint, network: str, dtype: str, quantised: QuantisedNetwork) -> list[Entry]:
    """Entries for everything that the network's graphs read, in `dtype` (torch's name) where it is not quantised.

    Raises:
        QwenImageError: the tensors are not those of the network.
    """
    stored_dtype = next(name for name, torch_name in FLOAT_DTYPES.items() if torch_name == dtype)
    tensors = {tensor.name: tensor for tensor in read_tensors(checkpoint, network)}
    pairs = [
        EqualisedPair(pair, tensors[pair.first + WEIGHT], tensors[pair.second + WEIGHT]) for pair in quantised.pairs
    ]
    firsts = {pair.first.name: pair for pair in pairs}
    seconds = {pair.second.name: pair for pair in pairs}
    sizes = dims(checkpoint)
    entries: list[Entry] = []
    for name, tensor in tensors.items():
        first, second = firsts.get(name), seconds.get(name)
        layer = quantised.layers.get(name.removesuffix(WEIGHT))
        if layer is not None:
            weight = Int8Weight(Equalised(tensor, first, second), layer.rotation)
            entries += [weight, Int8Scales(weight)]
        elif first is not None:
            entries.append(EqualisedWeight(Equalised(tensor, first)))
        else:
            entries.append(Stored(tensor, stored_dtype))
        if first is not None and crosses_components(first.pair):
            entries.append(PairScales(scales_name(first.pair), first, (sizes.heads, sizes.head_dim)))
    return entries
