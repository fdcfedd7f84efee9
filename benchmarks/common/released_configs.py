"""The released checkpoint's configs, as published in its config.json files, and smaller configs like them."""

from typing import Any

Z_DIM = 64
SPECIAL_TOKENS = 151643
"""Id of the first special token, `<|endoftext|>`."""


def released_configs() -> dict[str, dict[str, Any]]:
    """Return the released configs by component. The text encoder's has the published spelling, of transformers 4."""
    transformer = {
        "_class_name": "QwenImage21Transformer2DModel",
        "patch_size": 1,
        "in_channels": Z_DIM,
        "out_channels": Z_DIM,
        "num_layers": 32,
        "attention_head_dim": 128,
        "num_attention_heads": 32,
        "context_in_dim": 4096,
        "mlp_ratio": 3,
        "axes_dims_rope": [16, 56, 56],
        "eps": 1e-6,
        "causal_condition": True,
    }
    text = {
        "model_type": "qwen3_vl_text",
        "hidden_act": "silu",
        "attention_bias": False,
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e6,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [24, 20, 20]},
    }
    vision = {
        "model_type": "qwen3_vl",
        "depth": 27,
        "hidden_size": 1152,
        "hidden_act": "gelu_pytorch_tanh",
        "intermediate_size": 4304,
        "num_heads": 16,
        "in_channels": 3,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 4096,
        "num_position_embeddings": 48 * 48,
        "deepstack_visual_indexes": [8, 16, 24],
    }
    vae = {
        "_class_name": "AutoencoderKLQwenImage21",
        "base_dim": 96,
        "decoder_base_dim": 144,
        "z_dim": Z_DIM,
        "dim_mult": [1, 2, 4, 8, 8],
        "num_res_blocks": 2,
        "attn_scales": [],
        "temperal_downsample": [False, True, True, True],
        "is_residual": True,
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": None,
        "scale_factor_spatial": 16,
        "scale_factor_temporal": 8,
        "latents_mean": [0.0] * Z_DIM,
        "latents_std": [1.0] * Z_DIM,
    }
    text_encoder = {
        "model_type": "qwen3_vl",
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "text_config": text,
        "vision_config": vision,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "tie_word_embeddings": False,
    }
    return {"transformer": transformer, "text_encoder": text_encoder, "vae": vae}


def configs_of_depth(layers: int) -> dict[str, dict[str, Any]]:
    """Return configs with every released width, but `layers` blocks in transformer and text encoder."""
    configs = released_configs()
    configs["transformer"]["num_layers"] = layers
    configs["text_encoder"]["text_config"]["num_hidden_layers"] = layers
    vision = configs["text_encoder"]["vision_config"]
    vision["deepstack_visual_indexes"] = vision["deepstack_visual_indexes"][:layers]
    return configs


def small_configs() -> dict[str, dict[str, Any]]:
    """Return configs of two narrow blocks with the whole vocabulary: 0.05 GB.

    They are those of the tests' checkpoint `narrow`, whose traced graphs tests keep, but for the vocabulary.
    """
    configs = configs_of_depth(2)
    configs["transformer"] |= {
        "in_channels": 16,
        "out_channels": 16,
        "attention_head_dim": 32,
        "num_attention_heads": 3,
        "context_in_dim": 64,
        "axes_dims_rope": [8, 12, 12],
    }
    configs["text_encoder"]["text_config"] |= {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2]},
    }
    configs["text_encoder"]["vision_config"] |= {
        "depth": 4,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "num_position_embeddings": 8 * 8,
        "deepstack_visual_indexes": [0, 1, 2],
    }
    configs["vae"] |= {
        "base_dim": 8,
        "decoder_base_dim": 12,
        "z_dim": 16,
        "dim_mult": [1, 2, 4, 4, 4],
        "num_res_blocks": 1,
        "latents_mean": [0.0] * 16,
        "latents_std": [1.0] * 16,
    }
    return configs
