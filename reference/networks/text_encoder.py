"""The Qwen3-VL text model without its final norm: the transformer was trained on the states before it.

Parameter names are the checkpoint's without `model.language_model.`. The network starts from embeddings: the host
gathers rows of the embedding table and puts the vision tower's features into the slots of reference images.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from qwen_image_engine.reference.checkpoint.config import TextEncoderConfig
from qwen_image_engine.reference.networks.layers import RMSNorm, attention, rotary


class SelfAttention(nn.Module):
    """Grouped-query causal attention with per-head RMS norms of q and k."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        c, d = config.hidden_size, config.head_dim
        self.head_dim = d
        self.q_proj = nn.Linear(c, config.num_attention_heads * d, bias=False)
        self.k_proj = nn.Linear(c, config.num_key_value_heads * d, bias=False)
        self.v_proj = nn.Linear(c, config.num_key_value_heads * d, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * d, c, bias=False)
        self.q_norm = RMSNorm(d, config.rms_norm_eps)
        self.k_norm = RMSNorm(d, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map (B, T, C) -> (B, T, C)."""
        q, k, v = (
            linear(x).unflatten(-1, (-1, self.head_dim)) for linear in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, T, heads, d), (B, T, kv heads, d) twice
        q = rotary(self.q_norm(q), cos, sin, interleaved=False)
        k = rotary(self.k_norm(k), cos, sin, interleaved=False)
        return self.o_proj(attention(q, k, v, causal=True))


class FeedForward(nn.Module):
    """The SwiGLU feed-forward layer: down_proj(SiLU(gate_proj(x)) * up_proj(x))."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) -> (B, T, C)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A transformer layer: pre-norm attention and feed-forward."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map (B, T, C) -> (B, T, C)."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class TextEncoder(nn.Module):
    """The `Qwen3VLTextModel` without embedding table and final norm."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, embeddings: Tensor, cos: Tensor, sin: Tensor, deepstack: Sequence[Tensor]) -> Tensor:
        """Return the hidden states of every token.

        Args:
            embeddings: (B, T, C). Attention is causal, so padding on the right changes nothing before it.
            cos: (T, head_dim/2) float32, see `runtime.model.rope.encoder_rotary_tables`.
            sin: Sines of the same angles, shaped like cos.
            deepstack: `config.deepstack` tensors (B, T, C), added to the output of the first layers; zero at text.

        Returns:
            (B, T, C), the last layer's output before the final norm.

        """
        x = embeddings
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin)
            if index < self.config.deepstack:
                x = x + deepstack[index]
        return x
