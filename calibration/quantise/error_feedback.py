"""Weights rounded one channel after the other, each channel's error taken up by those not yet rounded.

The error that matters is that of the product, E[(x (W - Q)^T)^2] = (W - Q) H (W - Q)^T with H the mean of x^T x over
what calibration saw. Rounding every weight to the nearest code is best only where channels do not go together; here
what rounding a channel costs is corrected in the channels that go with it. H is kept within blocks of channels: all of
it would take 26 GB for the released transformer.

Source: GPTQ, https://arxiv.org/abs/2210.17323, with its order by falling diagonal and its damping of 1%.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DAMPING = 0.01
"""Of the mean of the diagonal: channels that calibration hardly saw keep their weights."""


class ErrorFeedback:
    """Of the weights that read one input of K channels in blocks of B."""

    def __init__(self, gram: Tensor) -> None:
        """Factorise H.

        Args:
            gram: (K / B, B, B), symmetric and positive semidefinite; a block of zeros stands for channels never used.

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
        """Rows (n, K) float32 of a weight as values of codes.

        Args:
            rows: of the weight; each is on its own.
            to_code: the nearest value that has a code, for values (K / B, n) of one channel of each block.

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
