"""The facts of a model that the host side needs: sizes of heads, rotary axes, channels, the decoder's reach.

The base of the transformer's rotary frequencies is no fact of a checkpoint: the released line has 10000 in its code.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelFacts:
    """Sizes and bases read from the checkpoint.

    Attributes:
        channels: of a latent, equal in transformer and VAE.
        axes_dims_rope: channels of a transformer head given to (frame, row, column).
        encoder_head_dim: channels of a head of the text encoder.
        encoder_rope_theta: base of the text encoder's rotary frequencies.
        decoder_halo: latents on each side of a tile that its pixels depend on.
    """

    channels: int
    axes_dims_rope: tuple[int, ...]
    encoder_head_dim: int
    encoder_rope_theta: float
    decoder_halo: int
