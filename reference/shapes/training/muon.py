"""The Muon optimizer (Jordan et al. 2024): momentum with orthogonalised matrix updates.

torch's own Muon takes no convolutions.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from qwen_image_engine.reference.shapes.training.precision import fast_dtype

# Coefficients of the quintic Newton-Schulz iteration of the original.
_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """The Muon optimizer for weights of two or more axes, flattened to (out, rest).

    Updates are scaled to the size of AdamW's (Liu et al. 2025).

    Args:
        parameters: Weights of at least two axes.
        lr: Learning rate, in AdamW's terms.
        momentum: Momentum of the Nesterov average.
        weight_decay: Decoupled weight decay.

    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient, equal shapes together."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes.setdefault(weight.shape, []).append(weight)
            for weights in shapes.values():
                momenta = []
                for weight in weights:
                    assert weight.grad is not None
                    average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                    average.lerp_(weight.grad, 1 - group["momentum"])
                    momenta.append(weight.grad.lerp(average, group["momentum"]).flatten(1))
                updates = orthogonalised(torch.stack(momenta))
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update.view_as(weight), alpha=-0.2 * group["lr"] * max(update.shape) ** 0.5)


def orthogonalised(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Return nearly U V^T of each matrix's singular value decomposition U S V^T, (N, out, in) in fp32."""
    a, b, c = _QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(fast_dtype(matrices.device.type))
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float().contiguous()
