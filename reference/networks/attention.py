"""Scaled dot-product attention in the layout that the whole project passes around: (batch, tokens, heads, head_dim)."""

import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, heads side by side in the result.

    Args:
        q: (B, S, H, d).
        k: (B, L, G, d), where G divides H (grouped-query attention).
        v: (B, L, G, d).
        causal: Token i sees tokens 0..i; S and L must be equal.
        mask: Boolean, broadcastable to (B, H, S, L), True where q may see k; not together with `causal`.

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
