"""The 7B MMDiT: one stream of text and image tokens, block-causal, conditioned on t only where the target is.

Text and reference tokens are modulated from t = 0 and never attend to the target (`causal_condition`), so their keys
and values are the same at every step. The network therefore runs as two passes: `prefix` once a prompt, `step` once a
step. `forward` is the plain full pass that the two must equal. Parameter names are the checkpoint's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen_image_engine.reference.attention import attention
from qwen_image_engine.reference.config import TransformerConfig
from qwen_image_engine.reference.norm import RMSNorm
from qwen_image_engine.reference.rotary import rotary

TIME_FEATURES = 256

KeyValue = tuple[Tensor, Tensor]


class TimeEmbedding(nn.Module):
    """Two linears over the sinusoid of t, which the host computes in fp32 (bf16 cos of 1000 t is 37% off)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.timestep_embedder = nn.ModuleDict(
            {
                "linear_1": nn.Linear(TIME_FEATURES, hidden_size, bias=False),
                "linear_2": nn.Linear(hidden_size, hidden_size, bias=False),
            }
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, 256) -> (B, C)."""
        linear_1, linear_2 = self.timestep_embedder["linear_1"], self.timestep_embedder["linear_2"]
        return linear_2(F.silu(linear_1(features)))


class ZeroCentredNorm(nn.Module):
    """RMS norm in fp32 whose stored weight is the scale minus one."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float() + 1, self.eps).to(x.dtype)


class TextProjection(nn.Module):
    """Encoder states into the transformer's width."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.text_norm = ZeroCentredNorm(config.context_in_dim, config.eps)
        self.in_layer = nn.Linear(config.context_in_dim, config.hidden_size, bias=False)
        self.out_layer = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, context_in_dim) -> (B, T, C)."""
        return self.out_layer(F.gelu(self.in_layer(self.text_norm(x)), approximate="tanh"))


class Attention(nn.Module):
    """Projections of one block: q and k are RMS-normalised per head, then rotated."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c, d = config.hidden_size, config.attention_head_dim
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(c, c, bias=False)
        self.to_k = nn.Linear(c, c, bias=False)
        self.to_v = nn.Linear(c, c, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(c, c, bias=False)])
        self.norm_q = RMSNorm(d, config.eps)
        self.norm_k = RMSNorm(d, config.eps)

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, C) -> q, k, v, each (B, S, H, d)."""
        q, k, v = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.to_q, self.to_k, self.to_v))
        q = rotary(self.norm_q(q), cos, sin, interleaved=True)
        k = rotary(self.norm_k(k), cos, sin, interleaved=True)
        return q, k, v


class FeedForward(nn.Module):
    """SwiGLU: out(SiLU(gate_layer(x)) * proj(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c, hidden = config.hidden_size, config.hidden_size * config.mlp_ratio
        self.proj = nn.Linear(c, hidden, bias=False)
        self.gate_layer = nn.Linear(c, hidden, bias=False)
        self.out = nn.Linear(hidden, c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, C) -> (B, S, C)."""
        return self.out(F.silu(self.gate_layer(x)) * self.proj(x))


class Block(nn.Module):
    """Attention and feed-forward, each scaled before and gated after by the shared modulation."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.attn = Attention(config)
        self.img_mlp = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        past: KeyValue | None = None,
        causal: bool = False,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """One block over some of the tokens.

        Args:
            x: (B, S, C).
            modulation: (B or 1, S or 1, 4C): scale and gate of the attention, then of the feed-forward.
            cos: (S, d/2) or (B, S, d/2), float32.
            sin: As cos.
            past: Keys and values of the prefix, each (B, P, H, d), put before this pass's own.
            causal: Whether tokens see only those before them.
            mask: As in `attention`.

        Returns:
            (B, S, C), and this pass's own keys and values, each (B, S, H, d).

        """
        scale1, gate1, scale2, gate2 = modulation.chunk(4, dim=-1)
        q, k, v = self.attn.qkv(_layer_norm(x, self.eps) * (1 + scale1), cos, sin)
        keys, values = (k, v) if past is None else (torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1))
        out = attention(q, keys, values, causal=causal, mask=mask)
        x = x + torch.tanh(gate1) * self.attn.to_out[0](out)
        x = x + torch.tanh(gate2) * self.img_mlp(_layer_norm(x, self.eps) * (1 + scale2))
        return x, (k, v)


class OutputNorm(nn.Module):
    """Layer norm scaled by the time embedding."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.linear = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """x (B, S, C), temb (B or 1, S or 1, C) -> (B, S, C)."""
        return _layer_norm(x, self.eps) * (1 + self.linear(F.silu(temb)))


class Transformer(nn.Module):
    """`QwenImage21Transformer2DModel` as a prefix pass and a step pass."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.time_text_embed = TimeEmbedding(config.hidden_size)
        self.txt_in = TextProjection(config)
        self.img_in = nn.Linear(config.in_channels, config.hidden_size, bias=False)
        # Index 0 is the SiLU, so that the linear is named modulation.1 as in the checkpoint.
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.hidden_size, 4 * config.hidden_size, bias=False))
        self.transformer_blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.norm_out = OutputNorm(config)
        self.proj_out = nn.Linear(config.hidden_size, config.out_channels, bias=False)

    def time_embedding(self, features: Tensor) -> Tensor:
        """Time features (B or 1, 256) float32 -> (B or 1, 1, C) in the weights' dtype."""
        return self.time_text_embed(features.to(self.img_in.weight.dtype)).unsqueeze(1)

    def prefix(self, text_states: Tensor, cos: Tensor, sin: Tensor) -> list[KeyValue]:
        """Keys and values of the text in every layer, which no step changes.

        Args:
            text_states: (B, P, context_in_dim), the encoder's states after the system turn.
            cos: (P, d/2) float32, see `runtime.rope.rotary_tables`.
            sin: As cos.

        Returns:
            For every layer keys and values, each (B, P, H, d).

        """
        x = self.txt_in(text_states)
        modulation = self.modulation(self.time_embedding(zero_time_features(x.device)))
        cache = []
        for block in self.transformer_blocks:
            x, kv = block(x, modulation, cos, sin, causal=True)
            cache.append(kv)
        return cache

    def step(
        self,
        latents: Tensor,
        features: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: list[KeyValue],
        mask: Tensor | None = None,
    ) -> Tensor:
        """Velocity of the target tokens.

        Args:
            latents: (B, N, C_in).
            features: (B or 1, 256) float32, see `runtime.schedule.time_features`.
            cos: (N, d/2) float32.
            sin: As cos.
            cache: What `prefix` returned.
            mask: (B, 1, 1, P + N) boolean, False at the padding of a batch of prompts; training alone needs it.

        Returns:
            (B, N, C_out).

        """
        temb = self.time_embedding(features)
        modulation = self.modulation(temb)
        x = self.img_in(latents)
        for block, past in zip(self.transformer_blocks, cache, strict=True):
            x, _ = block(x, modulation, cos, sin, past=past, mask=mask)
        return self.proj_out(self.norm_out(x, temb))

    def forward(self, text_states: Tensor, latents: Tensor, features: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The whole sequence in one masked pass: the yardstick of the other two.

        Args:
            text_states: (B, P, context_in_dim).
            latents: (B, N, C_in).
            features: (B or 1, 256) float32.
            cos: (P + N, d/2) float32.
            sin: As cos.

        Returns:
            (B, N, C_out), the velocity.

        """
        p, n = text_states.shape[1], latents.shape[1]
        x = torch.cat([self.txt_in(text_states), self.img_in(latents)], dim=1)
        temb0, temb = self.time_embedding(zero_time_features(x.device)), self.time_embedding(features)
        b = temb.shape[0]
        modulation = torch.cat(
            [self.modulation(temb0).expand(b, p, -1), self.modulation(temb).expand(b, n, -1)], dim=1
        )  # (B or 1, P + N, 4C)
        position = torch.arange(p + n, device=x.device)
        mask = (position[:, None] >= position[None, :]) | (position[:, None] >= p)  # the target sees everything
        for block in self.transformer_blocks:
            x, _ = block(x, modulation, cos, sin, mask=mask)
        return self.proj_out(self.norm_out(x[:, p:], temb))


def zero_time_features(device: torch.device) -> Tensor:
    """The sinusoid of t = 0, (1, 256) float32: cosines first."""
    half = TIME_FEATURES // 2
    return torch.cat([torch.ones(1, half, device=device), torch.zeros(1, half, device=device)], dim=1)


def _layer_norm(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=eps)
