"""Configurations of small checkpoints, which differ in every dimension that a released checkpoint states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# In the order of the released tokenizer, so that relative ids agree (151643 is the first).
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Added tokens of the released tokenizer that are not special: they match in text and survive skip_special_tokens.
PLAIN_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)


@dataclass(frozen=True)
class Configuration:
    """Arguments of the oracles' own classes; `text`, `vision` are those of Qwen3-VL's two sub-configs."""

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    merges: int  # byte-pair merges of the tokenizer

    @property
    def tokenizer_size(self) -> int:
        """Tokens of the tokenizer; the embedding table has `text["vocab_size"]` rows, more than these."""
        return 256 + self.merges + len(SPECIAL_TOKENS) + len(PLAIN_TOKENS)

    def token_id(self, token: str) -> int:
        """Id of a special token."""
        return 256 + self.merges + SPECIAL_TOKENS.index(token)


CONFIGURATIONS: Mapping[str, Configuration] = {
    "narrow": Configuration(
        transformer={
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 3,
            "context_in_dim": 64,
            "mlp_ratio": 3,
            "axes_dims_rope": (8, 12, 12),
            "eps": 1e-6,
        },
        vae={
            "base_dim": 8,
            "decoder_base_dim": 12,
            "z_dim": 16,
            "dim_mult": [1, 2, 4, 4, 4],
            "num_res_blocks": 1,
            "temperal_downsample": [False, True, True, True],
        },
        text={
            "vocab_size": 384,
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rms_norm_eps": 1e-6,
            "rope_theta": 5e6,
            "mrope_section": [4, 2, 2],
        },
        vision={
            "depth": 4,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "deepstack": [0, 1, 2],
            "side": 8,
        },
        merges=60,
    ),
    "odd": Configuration(
        transformer={
            "in_channels": 12,
            "out_channels": 12,
            "num_layers": 3,
            "attention_head_dim": 24,
            "num_attention_heads": 5,
            "context_in_dim": 48,
            "mlp_ratio": 2,
            "axes_dims_rope": (4, 12, 8),
            "eps": 1e-5,
        },
        vae={
            "base_dim": 12,
            "decoder_base_dim": 8,
            "z_dim": 12,
            "dim_mult": [1, 1, 2, 4, 4],
            "num_res_blocks": 2,
            "temperal_downsample": [True, False, True, False],
        },
        text={
            "vocab_size": 427,
            "hidden_size": 48,
            "intermediate_size": 112,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 20,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "mrope_section": [4, 3, 3],
        },
        vision={
            "depth": 3,
            "hidden_size": 48,
            "num_heads": 3,
            "intermediate_size": 80,
            "deepstack": [0, 2],
            "side": 6,
        },
        merges=110,
    ),
    "deep": Configuration(
        transformer={
            "in_channels": 24,
            "out_channels": 24,
            "num_layers": 5,
            "attention_head_dim": 40,
            "num_attention_heads": 2,
            "context_in_dim": 96,
            "mlp_ratio": 4,
            "axes_dims_rope": (8, 16, 16),
            "eps": 1e-4,
        },
        vae={
            "base_dim": 6,
            "decoder_base_dim": 10,
            "z_dim": 24,
            "dim_mult": [1, 2, 4, 8, 8],
            "num_res_blocks": 3,
            "temperal_downsample": [False, False, True, True],
        },
        text={
            "vocab_size": 512,
            "hidden_size": 96,
            "intermediate_size": 208,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 32,
            "rms_norm_eps": 1e-4,
            "rope_theta": 1e4,
            "mrope_section": [6, 5, 5],
        },
        vision={
            "depth": 5,
            "hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 96,
            "deepstack": [1, 3, 4],
            "side": 10,
        },
        merges=200,
    ),
}
