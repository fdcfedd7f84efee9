"""Block Hadamard rotations. They spread outliers of a few channels over a block without a change of the product.

An orthonormal R on both sides does not change x W^T = (x R)(W R)^T. Weights are rotated at export and activations at
run time. Source: QuaRot, https://arxiv.org/abs/2404.00456.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hadamard(size: int) -> Tensor:
    """Return Sylvester's matrix divided by sqrt(size): (size, size) float32, symmetric and orthonormal.

    Raises:
        ValueError: `size` is not a power of two.
    """
    if size < 1 or size & (size - 1):
        raise ValueError(f"a Hadamard matrix of size {size}: expected a power of two")
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / size**0.5


def rotate(rows: Tensor, block: int) -> Tensor:
    """Multiply every block of `block` channels of `rows` (N, K) by the Hadamard matrix; `block` divides K."""
    if block == 1:
        return rows
    return (rows.reshape(-1, block) @ hadamard(block).to(rows.device)).reshape(rows.shape)
