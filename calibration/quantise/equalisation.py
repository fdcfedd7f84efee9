"""Scales that move magnitude between the two linears on either side of a channel, without calibration data.

Row i of the first weight times s_i and column i of the second over s_i leave the network as it is where what lies
between them is linear in that channel: the weighted sums of attention, and the product with the gate of a SwiGLU.
Source: Nagel et al. 2019, cross-layer equalisation, https://arxiv.org/abs/1906.04721; norms in the place of ranges.
"""

from __future__ import annotations

import torch
from torch import Tensor


def equalising_scales(rows: Tensor, columns: Tensor) -> Tensor:
    """Powers of two (C,) float32 near sqrt(columns / rows).

    The error of a quantised product grows with |x s| |W / s|, x being the activations and W the second weight; by
    Cauchy and Schwarz that is least where s_i^2 = |W_i| / |x_i|, and |x_i| goes with the norm of the first weight's
    row i. A power of two misses by at most sqrt(2) and moves no bit of a mantissa: the network is exactly the same.

    Args:
        rows: (C,) norms of the first weight's rows.
        columns: (C,) norms of the second weight's columns.

    """
    exponents = (torch.log2(columns.double()) - torch.log2(rows.double())) / 2
    # A channel that either side never uses has nothing to move.
    exponents = torch.where(torch.isfinite(exponents), exponents, 0.0)
    return torch.exp2(exponents.round()).float()


def shared_by_heads(columns: Tensor, groups: int, channels: int) -> Tensor:
    """Norms (C,) of value channels, `groups` heads, from those of the columns they feed, of which heads share them.

    Heads of a group stand side by side, as in scaled_dot_product_attention's enable_gqa.
    """
    return columns.reshape(groups, -1, channels // groups).square().sum(dim=1).sqrt().flatten()


def for_heads(scales: Tensor, groups: int, columns: int) -> Tensor:
    """Scales (C,) of value channels, `groups` heads, for each of the `columns` that they feed."""
    return scales.reshape(groups, 1, -1).repeat(1, columns // scales.numel(), 1).flatten()
