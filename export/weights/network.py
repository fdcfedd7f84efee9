"""The entries of a network's weight file for a quantisation, known before a byte is written."""

from __future__ import annotations

from qwen_image_engine.calibration.quantise.channel_scales import channel_scales
from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.calibration.rules.linears import WEIGHT
from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.export.passes.quantised.smooth_modulation import factors_name, smoothed_by_modulation
from qwen_image_engine.export.passes.quantised.value_scales import crosses_components, scales_name
from qwen_image_engine.export.weights.quantised import (
    Fp8Scale,
    Fp8Weight,
    InputFactors,
    Int8Scales,
    Int8Weight,
    Rescaled,
    RescaledWeight,
    RowScales,
    SharedScale,
)
from qwen_image_engine.export.weights.weight_file import Entry, Stored
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.components import dims
from qwen_image_engine.reference.load import read_tensors

_FP8_SCALE = {"F16": "F32"}
"""Stored dtype of an FP8 weight's scale, by the dtype that the graph computes in; the same dtype if absent.

fp16 has no normal number for the scale of a weight that is below 0.03 everywhere. The products take the scale in
float32.
"""


def network_weights(checkpoint: Checkpoint, network: str, dtype: str, quantised: QuantisedNetwork) -> list[Entry]:
    """Return entries for everything that the network's graphs read.

    Weights that are not quantised are in `dtype` (torch's name).

    Raises:
        QwenImageError: the checkpoint's tensors do not match the network.
    """
    stored_dtype = DTYPES[dtype].safetensors
    tensors = {tensor.name: tensor for tensor in read_tensors(checkpoint, network)}
    rows, columns = channel_scales(tensors, quantised)
    sizes = dims(checkpoint)
    entries: list[Entry] = [
        RowScales(scales_name(pair), rows[pair.first], (sizes.heads, sizes.head_dim), stored_dtype)
        for pair in quantised.pairs
        if crosses_components(pair)
    ]
    entries += [
        InputFactors(factors_name(name), columns[name], channels.readers[0].shape[1:], stored_dtype)
        for name, channels in smoothed_by_modulation(quantised).items()
    ]
    weights: dict[str, Rescaled] = {}
    for name, tensor in tensors.items():
        linear = name.removesuffix(WEIGHT)
        weights[linear] = Rescaled(tensor, rows.get(linear), columns.get(linear))
    scales: dict[tuple[str, ...], SharedScale] = {}
    for name, tensor in tensors.items():
        linear = name.removesuffix(WEIGHT)
        weight = weights[linear]
        layer = quantised.layers.get(linear)
        if layer is None:
            plain = weight.rows is None and weight.columns is None
            entries.append(Stored(tensor, stored_dtype) if plain else RescaledWeight(weight, stored_dtype))
        elif layer.precision == "fp8":
            sharing = quantised.sharing_scale(linear)
            if sharing not in scales:
                scale_dtype = _FP8_SCALE.get(stored_dtype, stored_dtype)
                scales[sharing] = SharedScale([weights[other] for other in sharing], scale_dtype)
            fp8_weight = Fp8Weight(weight, scales[sharing], quantised.inputs.get(linear))
            entries += [fp8_weight, Fp8Scale(fp8_weight)]
        else:
            int8_weight = Int8Weight(weight, layer.rotation, stored_dtype, quantised.inputs.get(linear))
            entries += [int8_weight, Int8Scales(int8_weight)]
    return entries
