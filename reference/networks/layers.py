"""Layers that several networks share: attention, RMS norm, and rotary position embedding.

The rotary embedding is in real arithmetic, because an exported graph has no complex numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rotary(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate pairs of channels by the angles whose cosines and sines are given, in fp32.

    Args:
        x: (B, S, H, d).
        cos: (S, d/2) or (B, S, d/2), float32.
        sin: Sines of the same angles, shaped like cos.
        interleaved: True pairs neighbours (0, 1), (2, 3), … as in the transformer. False pairs channel i with i + d/2,
            as in Qwen3-VL.

    Returns:
        (B, S, H, d) in x's dtype.

    """
    # Dynamo of torch 2.11 says of torch.compile too that it exports; torch.onnx.export traces without Dynamo.
    if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
        return _one_node(x, cos, sin, interleaved)
    axis = -1 if interleaved else -2
    pairs = x.float().unflatten(-1, (-1, 2) if interleaved else (2, -1))  # (B, S, H, d/2, 2) or (B, S, H, 2, d/2)
    cos, sin = (table.unsqueeze(-2).unsqueeze(axis) for table in (cos, sin))
    sign = 2 * torch.arange(2, device=x.device) - 1  # made on the device: a CUDA graph takes no copy from the host
    sign = sign if interleaved else sign[:, None]
    # a cos - b sin and b cos + a sin. If the two were stacked, inductor would write fp32 and cast in one kernel more.
    return (pairs * cos + pairs.flip(axis) * (sin * sign)).flatten(-2).to(x.dtype)


def _one_node(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Compute `rotary` as ONNX's RotaryEmbedding-23. ONNX Runtime needs its tables for every batch entry."""
    b, _, heads, _ = x.shape
    cos, sin = cos.expand(b, -1, -1), sin.expand(b, -1, -1)
    out: Tensor = torch.onnx.ops.rotary_embedding(
        x.float().flatten(2), cos, sin, interleaved=interleaved, num_heads=heads
    )
    return out.to(x.dtype).reshape(x.shape)


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v, with the heads side by side.

    Args:
        q: (B, S, H, d).
        k: (B, L, G, d), where G divides H (grouped-query attention).
        v: (B, L, G, d).
        causal: Token i attends to tokens 0..i; S and L must be equal.
        mask: Boolean, broadcastable to (B, H, S, L), True where q may attend to k; not together with `causal`.

    Returns:
        (B, S, H * d).

    """
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2).flatten(2)


class RMSNorm(nn.Module):
    """The norm x / sqrt(mean(x^2) + eps) * weight over the last axis.

    Args:
        channels: Length of the last axis.
        eps: Added to the mean square.

    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) -> (…, C) in x's dtype."""
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)
