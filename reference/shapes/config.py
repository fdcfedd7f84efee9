"""Sizes of the `shapes` networks: the released architecture, about a thousandth of its parameters."""

from qwen_image_engine.reference.checkpoint.config import TextEncoderConfig, TransformerConfig, VaeConfig, VisionConfig

Z_DIM = 16
ENCODER_WIDTH = 128


def vae_config(mean: tuple[float, ...] = (0.0,) * Z_DIM, std: tuple[float, ...] = (1.0,) * Z_DIM) -> VaeConfig:
    """Return the sizes of the autoencoder. `mean` and `std` are the statistics of its latents, once known."""
    return VaeConfig(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=Z_DIM,
        dim_mult=(1, 2, 4, 8, 8),
        num_res_blocks=1,
        temperal_downsample=(False, True, True, True),
        in_channels=4,
        out_channels=4,
        latents_mean=mean,
        latents_std=std,
    )


def encoder_config(vocabulary: int) -> TextEncoderConfig:
    """Return the sizes of the text encoder, with grouped-query attention as in the released one."""
    return TextEncoderConfig(
        vocab_size=vocabulary,
        hidden_size=ENCODER_WIDTH,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rms_norm_eps=1e-6,
        rope_theta=100000.0,
        mrope_section=(6, 5, 5),
        deepstack=3,
    )


def vision_config() -> VisionConfig:
    """Return the sizes of the vision tower. Its position table has the size of a picture of 128 pixels a side."""
    return VisionConfig(
        depth=4,
        hidden_size=48,
        intermediate_size=96,
        num_heads=2,
        position_side=8,
        out_hidden_size=ENCODER_WIDTH,
        deepstack=(0, 1, 2),
        rope_theta=10000.0,
    )


def transformer_config() -> TransformerConfig:
    """Return the sizes of the transformer."""
    return TransformerConfig(
        in_channels=Z_DIM,
        out_channels=Z_DIM,
        num_layers=7,
        attention_head_dim=64,
        num_attention_heads=3,
        context_in_dim=ENCODER_WIDTH,
        mlp_ratio=3,
        axes_dims_rope=(8, 28, 28),
        eps=1e-6,
    )
