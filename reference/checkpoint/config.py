"""The networks' dimensions, read from a checkpoint's own JSON.

Sources: diffusers 0.42 (`QwenImage21Transformer2DModel`, `AutoencoderKLQwenImage21`), transformers 4 and 5
(`Qwen3VLConfig`). Every key that shapes a network is required. A value that the networks here do not implement is an
error that names the key. Keys that change nothing (dropout, initialisation, cache switches) are in `ignored`, for
`inspect`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_image_engine.engines.core.components import Attention
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.model.facts import ATTENTION, ROPE_THETA
from qwen_image_engine.runtime.system.json_schema import MISSING, Reader


@dataclass(frozen=True)
class TransformerConfig:
    """Dimensions of the block-causal MMDiT, from transformer/config.json.

    `axes_dims_rope` are the rotary dimensions of (frame, row, column); they sum to `attention_head_dim`. If
    `bidirectional`, every token attends to every other and is modulated by the step's t. Otherwise attention is
    block-causal.
    """

    in_channels: int
    out_channels: int
    num_layers: int
    attention_head_dim: int
    num_attention_heads: int
    context_in_dim: int
    mlp_ratio: int
    axes_dims_rope: tuple[int, ...]
    eps: float
    bidirectional: bool = False
    ignored: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream: heads times head_dim."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def attention(self) -> Attention:
        """The attention's name, from `ATTENTION`."""
        return ATTENTION[self.bidirectional]

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str, attention: str | None = None) -> TransformerConfig:
        """Read and check the parsed JSON of the file named `where`; `attention` overrides the file.

        Raises:
            UsageError: `attention` is not one of `ATTENTION`.
            QwenImageError: a key is missing, or its value is one that the network does not implement.
        """
        reader = Reader(values, where)
        reader.expect("_class_name", "QwenImage21Transformer2DModel")
        _refuse_quantised(reader)
        reader.expect("patch_size", 1)
        bidirectional = _is_bidirectional(reader, attention)
        in_channels = reader.integer("in_channels")
        out_channels = reader.integer("out_channels")
        if out_channels != in_channels:
            reader.refuse("out_channels", f"in_channels, {in_channels}: the velocity has the latents' shape")
        head_dim = reader.integer("attention_head_dim")
        axes = reader.integers("axes_dims_rope", 3)
        if sum(axes) != head_dim or any(dim % 2 for dim in axes):
            reader.refuse("axes_dims_rope", f"three even numbers that sum to attention_head_dim, {head_dim}")
        return cls(
            in_channels=in_channels,
            out_channels=out_channels,
            num_layers=reader.integer("num_layers"),
            attention_head_dim=head_dim,
            num_attention_heads=reader.integer("num_attention_heads"),
            context_in_dim=reader.integer("context_in_dim"),
            mlp_ratio=reader.integer("mlp_ratio"),
            axes_dims_rope=axes,
            eps=reader.number("eps"),
            bidirectional=bidirectional,
            ignored=reader.ignored(),
        )


@dataclass(frozen=True)
class TextEncoderConfig:
    """Dimensions of Qwen3-VL's language model, from text_encoder/config.json.

    `mrope_section` counts the pairs of a head's channels that rotate with (frame, row, column), interleaved.
    `deepstack` is the number of layers, from the first, after which features of the reference images are added.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, ...]
    deepstack: int
    ignored: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> TextEncoderConfig:
        """Read and check the parsed JSON of the file named `where`, in the spelling of transformers 4 or 5.

        Raises:
            QwenImageError: a key is missing, or its value is one that the network does not implement.
        """
        reader = Reader(values, where)
        reader.expect("model_type", "qwen3_vl")
        reader.expect("architectures", ["Qwen3VLForConditionalGeneration"])
        _refuse_quantised(reader)
        text = reader.section("text_config")
        text.expect("model_type", "qwen3_vl_text")
        text.expect("hidden_act", "silu")
        text.expect("attention_bias", False)
        heads = text.integer("num_attention_heads")
        key_value_heads = text.integer("num_key_value_heads")
        if heads % key_value_heads:
            text.refuse("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
        head_dim = text.integer("head_dim")
        if head_dim % 2:
            text.refuse("head_dim", "an even number")
        rope_theta, mrope_section, rope_ignored = _rope(text, head_dim)
        layers = text.integer("num_hidden_layers")
        vision = reader.section("vision_config")
        deepstack = vision.places("deepstack_visual_indexes")
        if len(deepstack) > layers:
            vision.refuse("deepstack_visual_indexes", f"at most {layers} numbers, as many as text layers")
        return cls(
            vocab_size=text.integer("vocab_size"),
            hidden_size=text.integer("hidden_size"),
            intermediate_size=text.integer("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            head_dim=head_dim,
            rms_norm_eps=text.number("rms_norm_eps"),
            rope_theta=rope_theta,
            mrope_section=mrope_section,
            deepstack=len(deepstack),
            ignored=(*reader.ignored(), *text.ignored(), *rope_ignored),
        )


@dataclass(frozen=True)
class VisionConfig:
    """Dimensions of Qwen3-VL's vision tower, from `vision_config` in text_encoder/config.json.

    Patches are 16 pixels a side and two frames deep. Four of them, 2x2, become one token. `position_side` is the side
    of the square table of learned positions. `deepstack` lists the blocks whose output the text encoder also gets.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    position_side: int
    out_hidden_size: int
    deepstack: tuple[int, ...]
    rope_theta: float
    ignored: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.hidden_size // self.num_heads

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> VisionConfig:
        """Read and check the parsed JSON of the file named `where`.

        Raises:
            QwenImageError: a key is missing, or its value is one that the network does not implement.
        """
        reader = Reader(values, where)
        vision = reader.section("vision_config")
        vision.expect("model_type", "qwen3_vl_vision", "qwen3_vl")  # the latter where transformers 4 wrote it
        vision.expect("hidden_act", "gelu_pytorch_tanh")
        vision.expect("in_channels", 3, why="RGB")
        vision.expect("patch_size", 16)
        vision.expect("spatial_merge_size", 2)
        vision.expect("temporal_patch_size", 2)
        hidden, heads = vision.integer("hidden_size"), vision.integer("num_heads")
        if hidden % heads or hidden // heads % 4:
            vision.refuse("num_heads", f"heads of a multiple of 4 channels, {hidden} in all")
        positions = vision.integer("num_position_embeddings")
        side = math.isqrt(positions)
        if side * side != positions:
            vision.refuse("num_position_embeddings", "a square number")
        out, text_hidden = vision.integer("out_hidden_size"), reader.section("text_config").integer("hidden_size")
        if out != text_hidden:
            vision.refuse("out_hidden_size", f"{text_hidden}, as text_config.hidden_size")
        depth, deepstack = vision.integer("depth"), vision.places("deepstack_visual_indexes")
        if deepstack and deepstack[-1] >= depth:
            vision.refuse("deepstack_visual_indexes", f"blocks 0 to {depth - 1}")
        rope_theta = 10000.0
        if vision.get("rope_parameters") not in (MISSING, None):  # transformers 5
            rope = vision.section("rope_parameters")
            rope.expect("rope_type", "axial")
            rope_theta = float(rope.take("rope_theta", ROPE_THETA))
        return cls(
            depth=depth,
            hidden_size=hidden,
            intermediate_size=vision.integer("intermediate_size"),
            num_heads=heads,
            position_side=side,
            out_hidden_size=out,
            deepstack=deepstack,
            rope_theta=rope_theta,
            ignored=vision.ignored(),
        )


@dataclass(frozen=True)
class VaeConfig:
    """Dimensions of the 16x RGBA autoencoder, from vae/config.json.

    `latents_mean` and `latents_std` have `z_dim` values each: normalised latents are (mode - mean) / std.
    """

    base_dim: int
    decoder_base_dim: int
    z_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temperal_downsample: tuple[bool, ...]
    in_channels: int
    out_channels: int
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    ignored: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> VaeConfig:
        """Read and check the parsed JSON of the file named `where`.

        Raises:
            QwenImageError: a key is missing, or its value is one that the network does not implement.
        """
        reader = Reader(values, where)
        reader.expect("_class_name", "AutoencoderKLQwenImage21")
        _refuse_quantised(reader)
        reader.expect("is_residual", True)
        reader.expect("attn_scales", [])
        reader.expect("patch_size", None)
        reader.expect("in_channels", 4, why="RGBA")
        reader.expect("out_channels", 4, why="RGBA")
        reader.expect("scale_factor_spatial", 16)
        base_dim = reader.integer("base_dim")
        # The library's own rule: a null decoder_base_dim is base_dim.
        no_decoder_dim = reader.get("decoder_base_dim") is None
        decoder_base_dim = base_dim if no_decoder_dim else reader.integer("decoder_base_dim")
        dim_mult = reader.integers("dim_mult")
        if len(dim_mult) != 5:
            reader.refuse("dim_mult", "5 positive integers: 4 halvings make scale_factor_spatial, 16")
        temperal_downsample = reader.booleans("temperal_downsample", 4, "4 booleans, one fewer than dim_mult")
        _check_shortcuts(reader, dim_mult, temperal_downsample, base_dim, decoder_base_dim)
        z_dim = reader.integer("z_dim")
        latents_mean = reader.numbers("latents_mean", z_dim, f"{z_dim} numbers, as many as z_dim")
        latents_std = reader.numbers("latents_std", z_dim, f"{z_dim} positive numbers, as many as z_dim")
        if min(latents_std) <= 0:
            reader.refuse("latents_std", f"{z_dim} positive numbers, as many as z_dim")
        return cls(
            base_dim=base_dim,
            decoder_base_dim=decoder_base_dim,
            z_dim=z_dim,
            dim_mult=dim_mult,
            num_res_blocks=reader.integer("num_res_blocks"),
            temperal_downsample=temperal_downsample,
            in_channels=4,
            out_channels=4,
            latents_mean=latents_mean,
            latents_std=latents_std,
            ignored=reader.ignored(),
        )


def check_components(transformer: TransformerConfig, text_encoder: TextEncoderConfig, vae: VaeConfig) -> None:
    """Raise if the components do not fit each other.

    Raises:
        QwenImageError: the text encoder's states or the VAE's latents have another width than the transformer reads.
    """
    if transformer.context_in_dim != text_encoder.hidden_size:
        raise QwenImageError(
            f"transformer/config.json: key 'context_in_dim' is {transformer.context_in_dim}, expected "
            f"{text_encoder.hidden_size}, the text encoder's hidden_size; these components are of different models"
        )
    if transformer.in_channels != vae.z_dim:
        raise QwenImageError(
            f"transformer/config.json: key 'in_channels' is {transformer.in_channels}, expected {vae.z_dim}, "
            "the VAE's z_dim; these components are of different models"
        )


def _is_bidirectional(reader: Reader, attention: str | None) -> bool:
    """Return whether attention is 2.0's, by `attention` or by the key of that name. Diffusers has no such key."""
    if attention is not None and attention not in ATTENTION:
        raise UsageError(f"attention {attention!r}: expected {' or '.join(ATTENTION)}")
    if attention is None and reader.get("attention") is not MISSING:
        reader.expect("attention", *ATTENTION)
        attention = str(reader.values["attention"])
    stated = reader.get("causal_condition")
    if attention is None:
        reader.expect(
            "causal_condition",
            True,
            why='or "attention": "bidirectional" beside it, or --attention bidirectional: every token then sees every '
            "other and is modulated by the timestep",
        )
    elif attention == "causal" and stated is False:
        reader.refuse("causal_condition", "true with causal attention, whose prefix no timestep changes")
    return attention == "bidirectional"


def _rope(text: Reader, head_dim: int) -> tuple[float, tuple[int, ...], tuple[str, ...]]:
    """Return the rotary base, the sections and the keys that were not read.

    The values are in `rope_parameters`, or in `rope_theta` and `rope_scaling`.
    """
    if text.get("rope_parameters") not in (MISSING, None):
        rope = text.section("rope_parameters")
        theta = float(rope.take("rope_theta", ROPE_THETA))
        if text.get("rope_scaling") not in (MISSING, None, text.values["rope_parameters"]):
            text.refuse("rope_scaling", "none, or the same as rope_parameters: transformers reads either")
        if text.get("rope_theta") not in (MISSING, None, theta):
            text.refuse("rope_theta", f"{theta}, as rope_parameters.rope_theta says")
    else:
        if text.get("rope_theta") is MISSING:
            text.refuse("rope_theta", "a positive number, or 'rope_parameters' with it (transformers 5)")
        theta = float(text.take("rope_theta", ROPE_THETA))
        rope = text.section("rope_scaling")
    # Files from before transformers 4.43 spell rope_type `type`.
    if rope.get("rope_type") is MISSING and rope.get("type") is not MISSING:
        rope.expect("type", "default")
    else:
        rope.expect("rope_type", "default")
    rope.expect("mrope_interleaved", True)
    sections = rope.integers("mrope_section", 3)
    if sum(sections) != head_dim // 2:
        rope.refuse("mrope_section", f"three numbers that sum to half of head_dim, {head_dim // 2}")
    for section in (rope, text):
        if section.get("partial_rotary_factor") is not MISSING and section.number("partial_rotary_factor") != 1.0:
            section.refuse("partial_rotary_factor", "1.0")
    return theta, sections, rope.ignored()


def _refuse_quantised(reader: Reader) -> None:
    if reader.get("quantization_config") not in (MISSING, None):
        reader.refuse("quantization_config", "none: the checkpoint's weights must be bf16, fp16 or fp32")


def _check_shortcuts(
    reader: Reader, dim_mult: tuple[int, ...], halves_time: tuple[bool, ...], base_dim: int, decoder_base_dim: int
) -> None:
    """Check that every resolution's parameter-free shortcut maps channels evenly (diffusers' AvgDown3D, DupUp3D)."""
    expected = "multipliers whose shortcuts divide evenly"
    widths = [base_dim * mult for mult in (1, *dim_mult)]
    factors = [4 * (1 + halved) for halved in halves_time]
    for before, after, factor in zip(widths[:-1], widths[1:], [*factors, 1], strict=True):
        if before * factor % after:
            reader.refuse("dim_mult", f"{expected}: {before} channels times {factor} do not divide by {after}")
    widths = [decoder_base_dim * mult for mult in (dim_mult[-1], *reversed(dim_mult))]
    for before, after, factor in zip(widths[:-2], widths[1:-1], reversed(factors), strict=True):
        if after * factor % before:
            reader.refuse("dim_mult", f"{expected}: {after} channels times {factor} do not divide by {before}")
