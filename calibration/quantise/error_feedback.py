"""Rounding of weights one channel after the other, with the error of each channel corrected in later channels.

The error to minimise is the error of the product, E[(x (W - Q)^T)^2] = (W - Q) H (W - Q)^T, where H is the mean of
x^T x over the calibration data. Rounding every weight to the nearest code is optimal only if channels are uncorrelated.
Here the rounding error of a channel is corrected in the channels that correlate with it. H is stored within blocks of
channels, because the whole matrix would take 26 GB for the released transformer.

Source: GPTQ, https://arxiv.org/abs/2210.17323, with GPTQ's order by falling diagonal and damping of 1%.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DAMPING = 0.01
"""Damping as a share of the mean of the diagonal. Channels that are almost always 0 thus keep their weights."""


class ErrorFeedback:
    """The error feedback for all weights that read one input of K channels, in blocks of B channels."""

    def __init__(self, gram: Tensor) -> None:
        """Factorise H.

        Args:
            gram: H, (K / B, B, B), symmetric and positive semidefinite. A block of zeros means channels that are never
                used.

        """
        gram = gram.double()
        diagonal = gram.diagonal(dim1=1, dim2=2)
        self._order = diagonal.argsort(dim=1, descending=True)  # (K / B, B)
        gram = gram.gather(1, self._order[:, :, None].expand_as(gram)).gather(2, self._order[:, None].expand_as(gram))
        level = diagonal.mean(dim=1)[:, None, None]
        damping = torch.where(level > 0, DAMPING * level, 1.0) * torch.eye(gram.shape[1], dtype=gram.dtype)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + damping))
        self._factors = torch.linalg.cholesky(inverse, upper=True).float()

    def rounded(self, rows: Tensor, to_code: Callable[[Tensor], Tensor]) -> Tensor:
        """Round rows of a weight to values that have a code.

        Args:
            rows: rows (n, K) float32 of the weight; rows are independent of each other.
            to_code: function that rounds values (K / B, n), one channel of each block, to the nearest values that have
                a code.

        """
        blocks, size = self._order.shape
        order = self._order.to(rows.device).expand(len(rows), blocks, size)
        left = rows.reshape(order.shape).gather(2, order).permute(2, 1, 0).contiguous()  # (B, K / B, n)
        factors = self._factors.to(rows.device)
        for channel in range(size):
            codes = to_code(left[channel])
            error = (left[channel] - codes) / factors[:, channel, channel, None]
            left[channel] = codes
            left[channel + 1 :] -= error * factors[:, channel, channel + 1 :].T[:, :, None]
        return torch.empty_like(rows.reshape(order.shape)).scatter(2, order, left.permute(2, 1, 0)).reshape(rows.shape)
