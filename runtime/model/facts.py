"""The facts of a model that the host needs: sizes of heads, rotary axes, channels, the decoder's receptive field.

The base of the transformer's rotary frequencies is not stored in a checkpoint: the released models have 10000 in their
code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from qwen_image_engine.engines.core.components import Attention, components_with
from qwen_image_engine.runtime.system.json_schema import (
    Check,
    between,
    fields_of,
    is_integer,
    is_list_of,
    is_number,
    leaf,
    whole_between,
)

ATTENTION: tuple[Attention, Attention] = ("causal", "bidirectional")
"""Kinds of the transformer's attention: block-causal in 2.1, and bidirectional over all tokens in 2.0, as the technical
report describes it."""


ROPE_THETA = between(1.0, 1e12)
"""Check of a base of rotary frequencies. Released models have 1e4 to 5e6."""

IMAGE_MEAN = leaf(
    "3 numbers from 0 to 1", lambda value: is_list_of(value, lambda item: is_number(item) and 0 <= item <= 1, 3)
)
IMAGE_STD = leaf(
    "3 numbers above 0, at most 1", lambda value: is_list_of(value, lambda item: is_number(item) and 0 < item <= 1, 3)
)


@dataclass(frozen=True)
class VisionFacts:
    """The vision tower's facts and its requirements on a reference image.

    Attributes:
        head_dim: channels of a head.
        rope_theta: base of the vision tower's rotary frequencies.
        position_side: side of the square table of learned positions.
        image_mean: mean of R, G, B, in 0..1.
        image_std: standard deviation of R, G, B, in 0..1.
        min_pixels: smallest area of an image; the processor would enlarge a smaller one [pixels].
        max_pixels: largest area of an image; the processor would shrink a larger one [pixels].
    """

    head_dim: int
    rope_theta: float
    position_side: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    min_pixels: int
    max_pixels: int


@dataclass(frozen=True)
class ModelFacts:
    """The sizes of a model and the bases of its rotary frequencies, read from the checkpoint.

    Attributes:
        channels: channels of a latent, equal in transformer and VAE.
        axes_dims_rope: channels of a transformer head given to (frame, row, column).
        encoder_heads: heads of the text encoder's queries.
        encoder_head_dim: channels of a head of the text encoder.
        encoder_rope_theta: base of the text encoder's rotary frequencies.
        encoder_mrope_section: pairs of channels of a head that rotate with (frame, row, column).
        deepstack: number of text encoder layers after which features of reference images are added.
        decoder_halo: latents on each side of a tile that its pixels depend on.
        cache_token_bytes: bytes of a prefix token's keys and values in all layers, in float32.
        bidirectional: whether the transformer has the component "joint" instead of prefix and step.
        vision: facts of the vision tower.
    """

    channels: int
    axes_dims_rope: tuple[int, ...]
    encoder_heads: int
    encoder_head_dim: int
    encoder_rope_theta: float
    encoder_mrope_section: tuple[int, ...]
    deepstack: int
    decoder_halo: int
    cache_token_bytes: int
    bidirectional: bool
    vision: VisionFacts

    @property
    def attention(self) -> Attention:
        """Kind of the transformer's attention, an item of `ATTENTION`."""
        return ATTENTION[self.bidirectional]

    @property
    def step(self) -> str:
        """Name of the component that runs every step."""
        return next(row.name for row in components_with(self.attention) if row.runs == "step")

    def cache_bytes(self, tokens: int, item_bytes: int = 4) -> int:
        """Return the bytes of all layers' keys and values of `tokens` prefix tokens, in items of `item_bytes`."""
        return tokens * self.cache_token_bytes * item_bytes // 4

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the facts from the object that `dataclasses.asdict` wrote.

        Raises:
            SchemaError: a value is missing or not in the expected format.
        """
        FACTS_SCHEMA(data, "facts")
        vision = VisionFacts(
            **{**data["vision"], **{name: tuple(data["vision"][name]) for name in ("image_mean", "image_std")}}
        )
        sizes = {name: tuple(data[name]) for name in ("axes_dims_rope", "encoder_mrope_section")}
        return cls(**{**data, **sizes, "vision": vision})


_SIZE = whole_between(1, 2**20)


def _rotary(expected: str, least: int) -> Check:
    """Return the check of three sizes, of `least` or more, of the axes (frame, row, column)."""
    return leaf(expected, lambda value: is_list_of(value, lambda item: is_integer(item) and least <= item <= 2**20, 3))


FACTS_SCHEMA = fields_of(
    ModelFacts,
    channels=_SIZE,
    axes_dims_rope=_rotary("3 even numbers above 0", 2),
    encoder_heads=_SIZE,
    encoder_head_dim=_SIZE,
    encoder_rope_theta=ROPE_THETA,
    encoder_mrope_section=_rotary("3 whole numbers above 0", 1),
    deepstack=whole_between(0, 1000),
    decoder_halo=whole_between(0, 1000),
    cache_token_bytes=whole_between(0, 2**40),
    vision=fields_of(
        VisionFacts,
        head_dim=_SIZE,
        rope_theta=ROPE_THETA,
        position_side=whole_between(1, 4096),
        image_mean=IMAGE_MEAN,
        image_std=IMAGE_STD,
        min_pixels=whole_between(1, 2**40),
        max_pixels=whole_between(1, 2**40),
    ),
)
"""Check of the facts' JSON: format and range. `runtime.bundle.consistency` holds them against the contracts."""
