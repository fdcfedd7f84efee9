"""The 7B MMDiT: one stream of text and image tokens, block-causal, with only the target conditioned on t.

Tokens of text and reference images are modulated from t = 0 and never attend to the target (`causal_condition`), so
their keys and values are the same at every step. The network therefore runs in passes: `prefix` once a prompt,
`prefix_image` once for each reference image, `step` once a step. 2.0's attention is bidirectional and has one pass,
`joint`. Parameter names are the checkpoint's.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen_image_engine.reference.checkpoint.config import TransformerConfig
from qwen_image_engine.reference.networks.layers import RMSNorm, attention, rotary

TIME_FEATURES = 256

KeyValue = tuple[Tensor, Tensor]


class Modulation(NamedTuple):
    """The factors of every block, each (B or 1, S or 1, C): 1 + scale before attention and feed-forward, and the tanh
    of a gate after each. All blocks share them, so they are computed once a pass."""

    attention: Tensor
    attention_gate: Tensor
    mlp: Tensor
    mlp_gate: Tensor


class TimeEmbedding(nn.Module):
    """Two linears on the sinusoid of t, which the host computes in fp32 (bf16 cos of 1000 t is 37% off)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.timestep_embedder = nn.ModuleDict(
            {
                "linear_1": nn.Linear(TIME_FEATURES, hidden_size, bias=False),
                "linear_2": nn.Linear(hidden_size, hidden_size, bias=False),
            }
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, 256) -> (B, C)."""
        linear_1, linear_2 = self.timestep_embedder["linear_1"], self.timestep_embedder["linear_2"]
        return linear_2(F.silu(linear_1(features)))


class ZeroCentredNorm(nn.Module):
    """An RMS norm in fp32 whose stored weight is the scale minus one."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) -> (B, T, C)."""
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float() + 1, self.eps).to(x.dtype)


class TextProjection(nn.Module):
    """The projection of encoder states to the transformer's width."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.text_norm = ZeroCentredNorm(config.context_in_dim, config.eps)
        self.in_layer = nn.Linear(config.context_in_dim, config.hidden_size, bias=False)
        self.out_layer = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, context_in_dim) -> (B, T, C)."""
        return self.out_layer(F.gelu(self.in_layer(self.text_norm(x)), approximate="tanh"))


class Attention(nn.Module):
    """The attention projections of one block: q and k are RMS-normalised per head, then rotated."""

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
        """Map (B, S, C) -> q, k, v, each (B, S, H, d)."""
        q, k, v = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.to_q, self.to_k, self.to_v))
        q = rotary(self.norm_q(q), cos, sin, interleaved=True)
        k = rotary(self.norm_k(k), cos, sin, interleaved=True)
        return q, k, v


class FeedForward(nn.Module):
    """The SwiGLU feed-forward layer: out(SiLU(gate_layer(x)) * proj(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c, hidden = config.hidden_size, config.hidden_size * config.mlp_ratio
        self.proj = nn.Linear(c, hidden, bias=False)
        self.gate_layer = nn.Linear(c, hidden, bias=False)
        self.out = nn.Linear(hidden, c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, C) -> (B, S, C)."""
        return self.out(F.silu(self.gate_layer(x)) * self.proj(x))


class Block(nn.Module):
    """A block: attention and feed-forward, each scaled before and gated after by the shared modulation."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.attn = Attention(config)
        self.img_mlp = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        modulation: Modulation,
        cos: Tensor,
        sin: Tensor,
        *,
        past: KeyValue | None = None,
        causal: bool = False,
        image_tokens: int = 0,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Run the block on the tokens of one pass.

        Args:
            x: (B, S, C).
            modulation: Modulation of this pass.
            cos: (S, d/2) or (B, S, d/2), float32.
            sin: Sines of the same angles, shaped like cos.
            past: Keys and values of the prefix, each (B, P, H, d), put before this pass's own.
            causal: Whether a token attends only to itself and earlier tokens.
            image_tokens: Number of image tokens, which come first. They attend to the past and to each other; the mask
                then belongs to the text after them.
            mask: Mask of `attention`.

        Returns:
            (B, S, C), and this pass's own keys and values, each (B, S, H, d).

        """
        q, k, v = self.attn.qkv(_layer_norm(x, self.eps) * modulation.attention, cos, sin)
        keys, values = (k, v) if past is None else (torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1))
        if image_tokens:
            seen = keys.shape[1] - (k.shape[1] - image_tokens)
            image = attention(q[:, :image_tokens], keys[:, :seen], values[:, :seen])
            out = torch.cat([image, attention(q[:, image_tokens:], keys, values, mask=mask)], dim=1)
        else:
            out = attention(q, keys, values, causal=causal, mask=mask)
        x = x + modulation.attention_gate * self.attn.to_out[0](out)
        x = x + modulation.mlp_gate * self.img_mlp(_layer_norm(x, self.eps) * modulation.mlp)
        return x, (k, v)


class OutputNorm(nn.Module):
    """A layer norm scaled by the time embedding."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.linear = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """Map x (B, S, C), temb (B or 1, S or 1, C) -> (B, S, C)."""
        return _layer_norm(x, self.eps) * (1 + self.linear(F.silu(temb)))


class Transformer(nn.Module):
    """The `QwenImage21Transformer2DModel` as prefix passes and a step pass, or as one joint pass."""

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
        """Map time features (B or 1, 256) float32 -> (B or 1, 1, C) in the weights' dtype."""
        return self.time_text_embed(features.to(self.img_in.weight.dtype)).unsqueeze(1)

    def block_modulation(self, temb: Tensor) -> Modulation:
        """Return the factors of the blocks, from the time embedding (B or 1, S or 1, C)."""
        scale1, gate1, scale2, gate2 = self.modulation(temb).chunk(4, dim=-1)
        return Modulation(1 + scale1, torch.tanh(gate1), 1 + scale2, torch.tanh(gate2))

    def prefix(self, text_states: Tensor, cos: Tensor, sin: Tensor) -> list[KeyValue]:
        """Return keys and values of the text before the first reference image, which no step changes.

        Args:
            text_states: (B, P, context_in_dim), the encoder's states after the system turn.
            cos: (P, d/2) float32, see `runtime.model.rope.rotary_tables`.
            sin: Sines of the same angles, shaped like cos.

        Returns:
            Keys and values of every layer, each (B, P, H, d).

        """
        x = self.txt_in(text_states)
        modulation = self.block_modulation(self.time_embedding(zero_time_features(x.device)))
        cache = []
        for block in self.transformer_blocks:
            x, kv = block(x, modulation, cos, sin, causal=True)
            cache.append(kv)
        return cache

    def prefix_image(
        self, latents: Tensor, text_states: Tensor, cos: Tensor, sin: Tensor, cache: list[KeyValue]
    ) -> list[KeyValue]:
        """Return keys and values of a reference image and of the text after it, which no step changes either.

        Image tokens attend to everything before them and to each other, text tokens to everything before them. Each
        layer does this in two calls of attention. The mask of the second call has one row for each text token.

        Args:
            latents: (B, n, C_in), latents of the image, row by row.
            text_states: (B, s, context_in_dim), states of the text up to the next image or the end.
            cos: (n + s, d/2) float32.
            sin: Sines of the same angles, shaped like cos.
            cache: Keys and values of all earlier tokens, in order: (B, P, H, d) in every layer.

        Returns:
            Keys and values of these tokens alone for every layer, each (B, n + s, H, d).

        """
        n, p = latents.shape[1], cache[0][0].shape[1]
        x = torch.cat([self.img_in(latents), self.txt_in(text_states)], dim=1)
        modulation = self.block_modulation(self.time_embedding(zero_time_features(x.device)))
        position = torch.arange(p + x.shape[1], device=x.device)
        mask = position[None, :] <= position[p + n :, None]  # (s, P + n + s)
        own = []
        for block, past in zip(self.transformer_blocks, cache, strict=True):
            x, kv = block(x, modulation, cos, sin, past=past, image_tokens=n, mask=mask)
            own.append(kv)
        return own

    def step(
        self,
        latents: Tensor,
        features: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: list[KeyValue],
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity of the target tokens.

        Args:
            latents: (B, N, C_in).
            features: (B or 1, 256) float32, see `runtime.model.time.time_features`.
            cos: (N, d/2) float32.
            sin: Sines of the same angles, shaped like cos.
            cache: Keys and values of the prefix from `prefix` and `prefix_image`, each (B, P, H, d).
            mask: (B, 1, 1, P + N) boolean, False at the padding of a batch of prompts; only training needs it.

        Returns:
            (B, N, C_out).

        """
        temb = self.time_embedding(features)
        modulation = self.block_modulation(temb)
        x = self.img_in(latents)
        for block, past in zip(self.transformer_blocks, cache, strict=True):
            x, _ = block(x, modulation, cos, sin, past=past, mask=mask)
        return self.proj_out(self.norm_out(x, temb))

    def joint(
        self,
        text_states: Tensor,
        latents: Tensor,
        features: Tensor,
        text_cos: Tensor,
        text_sin: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        """Return the velocity under bidirectional attention: every token attends to all and is modulated by t.

        Without a mask only the angles give the order of the tokens. Text therefore comes first here, wherever it is in
        the prompt.

        Args:
            text_states: (B, s, context_in_dim), without the slots of reference images.
            latents: (B, N, C_in), latents of the reference images, then of the target.
            features: (B or 1, 256) float32.
            text_cos: (s, d/2) float32, cosines of the text's angles.
            text_sin: Sines of the same angles, shaped like text_cos.
            cos: (N, d/2) float32, cosines of the latents' angles.
            sin: Sines of the same angles, shaped like cos.

        Returns:
            (B, N, C_out). The target's velocities come last; the others have no meaning.

        """
        temb = self.time_embedding(features)
        modulation = self.block_modulation(temb)
        x = torch.cat([self.txt_in(text_states), self.img_in(latents)], dim=1)
        cos, sin = torch.cat([text_cos, cos]), torch.cat([text_sin, sin])
        for block in self.transformer_blocks:
            x, _ = block(x, modulation, cos, sin)
        return self.proj_out(self.norm_out(x[:, text_states.shape[1] :], temb))


def zero_time_features(device: torch.device) -> Tensor:
    """Return the sinusoid of t = 0, (1, 256) float32: cosines first."""
    half = TIME_FEATURES // 2
    return torch.cat([torch.ones(1, half, device=device), torch.zeros(1, half, device=device)], dim=1)


def _layer_norm(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=eps)
