"""The components of a checkpoint, computed by the PyTorch networks.

Every compiled engine is compared with them, and the exporter traces them. `forward` maps the inputs of a component, by
the names of its contract, to the outputs in the order of the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from qwen_image_engine.engines.core.components import components_with
from qwen_image_engine.engines.core.contract import Contract, Dims
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.networks.text_encoder import TextEncoder
from qwen_image_engine.reference.networks.transformer import Transformer
from qwen_image_engine.reference.networks.vae import Vae
from qwen_image_engine.reference.networks.vision import Vision


def components(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the names of a checkpoint's components. They depend on its attention: prefix passes and step, or joint."""
    return tuple(row.name for row in components_with(checkpoint.transformer.attention))


def dims(checkpoint: Checkpoint) -> Dims:
    """Return the sizes that the contracts of a checkpoint name.

    A contract has two tensors for each layer of the transformer.

    Raises:
        QwenImageError: config.json asks for more layers than are stored.
    """
    checkpoint.check_depth("transformer")
    transformer, encoder = checkpoint.transformer, checkpoint.text_encoder
    return Dims(
        encoder_hidden=encoder.hidden_size,
        encoder_head_dim=encoder.head_dim,
        context=transformer.context_in_dim,
        layers=transformer.num_layers,
        heads=transformer.num_attention_heads,
        head_dim=transformer.attention_head_dim,
        channels=transformer.in_channels,
        z=checkpoint.vae.z_dim,
        features=checkpoint.vae.decoder_base_dim * checkpoint.vae.dim_mult[-1],
        vision_head_dim=checkpoint.vision.head_dim,
        deepstack=encoder.deepstack,
    )


def forward(component: Contract, network: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return a component's outputs in the dtypes of the contract, computed in the dtype of the network's weights.

    Tables of angles and the time features stay in float32: in bf16 the angles of late tokens would be noise.
    """
    results = _FORWARD[component.component](network, inputs)
    wanted = (getattr(torch, spec.dtype) for spec in component.outputs)
    return tuple(result.to(dtype) for result, dtype in zip(results, wanted, strict=True))


def _text_encoder(network: nn.Module, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    assert isinstance(network, TextEncoder)
    dtype = _dtype(network)
    deepstack = [inputs[f"deepstack_{i}"].to(dtype) for i in range(network.config.deepstack)]
    return (network(inputs["embeddings"].to(dtype), inputs["cos"], inputs["sin"], deepstack),)


def _vision(network: nn.Module, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    assert isinstance(network, Vision)
    patches = inputs["patches"].to(_dtype(network))
    features: list[Tensor] = network(patches, inputs["indices"], inputs["weights"], inputs["cos"], inputs["sin"])
    return features


def _prefix(network: nn.Module, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    assert isinstance(network, Transformer)
    cache = network.prefix(inputs["text_states"].to(_dtype(network)), inputs["cos"], inputs["sin"])
    return tuple(tensor for pair in cache for tensor in pair)


def _prefix_image(network: nn.Module, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    assert isinstance(network, Transformer)
    dtype = _dtype(network)
    cos = torch.cat([inputs["image_cos"], inputs["text_cos"]])
    sin = torch.cat([inputs["image_sin"], inputs["text_sin"]])
    latents, states = inputs["latents"].to(dtype), inputs["text_states"].to(dtype)
    own = network.prefix_image(latents, states, cos, sin, _cache(network, inputs))
    return tuple(tensor for pair in own for tensor in pair)


def _step(network: nn.Module, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    assert isinstance(network, Transformer)
    latents = inputs["latents"].to(_dtype(network))
    return (network.step(latents, inputs["time_features"], inputs["cos"], inputs["sin"], _cache(network, inputs)),)


def _joint(network: nn.Module, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    assert isinstance(network, Transformer)
    dtype = _dtype(network)
    tables = [inputs[name] for name in ("text_cos", "text_sin", "cos", "sin")]
    states, latents = inputs["text_states"].to(dtype), inputs["latents"].to(dtype)
    return (network.joint(states, latents, inputs["time_features"], *tables),)


def _cache(network: Transformer, inputs: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    dtype = _dtype(network)
    return [(inputs[f"key_{i}"].to(dtype), inputs[f"value_{i}"].to(dtype)) for i in range(network.config.num_layers)]


def _vae_decoder_mid(network: nn.Module, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    assert isinstance(network, Vae)
    return (network.features(inputs["latents"]),)


def _vae_decoder_up(network: nn.Module, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    assert isinstance(network, Vae)
    return (network.image(inputs["features"]),)


def _vae_encoder(network: nn.Module, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    assert isinstance(network, Vae)
    return (network.encode(inputs["image"]),)


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


_FORWARD: Mapping[str, Callable[[nn.Module, Mapping[str, Tensor]], Sequence[Tensor]]] = {
    "text_encoder": _text_encoder,
    "vision": _vision,
    "prefix": _prefix,
    "prefix_image": _prefix_image,
    "step": _step,
    "joint": _joint,
    "vae_decoder_mid": _vae_decoder_mid,
    "vae_decoder_up": _vae_decoder_up,
    "vae_encoder": _vae_encoder,
}
