"""Estimates of a plan's scratch memory, for plans that no GPU has loaded.

Fitted to the total of activations that the builder's log names, of graphs at the released widths
(benchmarks/results/build-memory.json). The compiler reuses memory from layer to layer, so depth does not count.
"""

from __future__ import annotations

from collections.abc import Mapping

from qwen_image_engine.engines.core.contract import Contract, TensorSpec

# Bytes that a token holds at once by channel of its hidden state. FP8 keeps forms of 16 and of 8 bits.
_STEP = {"bf16": 30.2, "int8": 28.2, "fp8": 36.2}
_PREFIX = {"bf16": 26.9, "int8": 26.9, "fp8": 34.2}
_TEXT_ENCODER = 28.1
_VISION = 24.4  # of a slot, by channel of the text encoder
_CACHE = 4.0  # keys and values of one block, behind those of the prefix
_SCORES = 2.0  # of a pair of tokens in a head, where attention has a mask
_REST = 8_000_000  # modulation, time

# Bytes that a latent holds at once by channel of the features, in convolutions and beside the scores of attention. The
# one head is too wide for a fused kernel, so scores and probabilities of all pairs of latents are there, in bf16.
_DECODER_MID = 35.2
_BESIDE_SCORES = 14.3
_PAIR = 4.0
_DECODER_UP = 512.0
_VAE_ENCODER = 3473.0  # by channel of the latents


def scratch_bytes(contract: Contract, axes: Mapping[str, int], precision: str = "bf16") -> int:
    """Return the estimate of the activations that a component's plan holds at once [bytes].

    Args:
        contract: contract of the component.
        axes: sizes of the contract's symbols in the call.
        precision: precision of the export.
    """
    specs = {spec.name: spec for spec in (*contract.inputs, *contract.outputs)}
    return int(axes.get("batch", 1) * _OF_ONE[contract.component](specs, axes, precision))


_Specs = Mapping[str, TensorSpec]


def _text_encoder(specs: _Specs, axes: Mapping[str, int], precision: str) -> float:
    return _TEXT_ENCODER * _channels(specs["embeddings"]) * axes["text"]


def _vision(specs: _Specs, axes: Mapping[str, int], precision: str) -> float:
    return _VISION * _channels(specs["embeddings"]) * axes["slots"]


def _prefix(specs: _Specs, axes: Mapping[str, int], precision: str) -> float:
    return _REST + _width(specs["key_0"]) * _PREFIX[precision] * axes["prefix"]


def _prefix_image(specs: _Specs, axes: Mapping[str, int], precision: str) -> float:
    image, text = axes["image"], axes["text"]
    everything = axes["prefix"] + image + text
    tokens = _STEP[precision] * image + _PREFIX[precision] * text + _CACHE * everything
    heads = int(specs["key_0"].shape[2])
    return _REST + max(_width(specs["key_0"]) * tokens, _SCORES * heads * text * everything)


def _step(specs: _Specs, axes: Mapping[str, int], precision: str) -> float:
    return _REST + _width(specs["key_0"]) * (_STEP[precision] * axes["tokens"] + _CACHE * axes["prefix"])


def _joint(specs: _Specs, axes: Mapping[str, int], precision: str) -> float:
    """Return the bytes of a step over all tokens; the width is the context's, which the released model has too."""
    return _REST + _channels(specs["text_states"]) * (_STEP[precision] + _CACHE) * (axes["tokens"] + axes["text"])


def _decoder_mid(specs: _Specs, axes: Mapping[str, int], precision: str) -> float:
    features, latents = int(specs["features"].shape[1]), axes["height"] * axes["width"]
    return max(_DECODER_MID * features * latents, _BESIDE_SCORES * features * latents + _PAIR * latents**2)


def _decoder_up(specs: _Specs, axes: Mapping[str, int], precision: str) -> float:
    return _DECODER_UP * int(specs["features"].shape[1]) * axes["height"] * axes["width"]


def _vae_encoder(specs: _Specs, axes: Mapping[str, int], precision: str) -> float:
    return _VAE_ENCODER * int(specs["latents"].shape[1]) * axes["height"] * axes["width"]


_OF_ONE = {
    "text_encoder": _text_encoder,
    "vision": _vision,
    "prefix": _prefix,
    "prefix_image": _prefix_image,
    "step": _step,
    "joint": _joint,
    "vae_decoder_mid": _decoder_mid,
    "vae_decoder_up": _decoder_up,
    "vae_encoder": _vae_encoder,
}
"""Formulas by component."""


def _channels(spec: TensorSpec) -> int:
    return int(spec.shape[-1])


def _width(keys: TensorSpec) -> int:
    """Return the channels of the transformer's hidden states: heads times channels of a head."""
    *_, heads, head_dim = keys.shape
    return int(heads) * int(head_dim)
