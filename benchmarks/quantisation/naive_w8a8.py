"""Plain W8A8, the yardstick: one scale for each tensor of weights and activations, from the largest magnitudes seen.

It is simulated in fp32: values are rounded to the 8-bit grid and multiplied in fp32, as exactly as integers would be.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from qwen_image_engine.calibration.quantise.int8 import LEVELS


def quantise_naively(network: nn.Module, names: Collection[str], run: Callable[[], object]) -> None:
    """Make the linears `names` of `network` compute in plain W8A8. The network's weights are replaced.

    Args:
        network: network to quantise.
        names: linears of the network.
        run: function that runs the network on its calibration inputs.
    """
    linears = [network.get_submodule(name) for name in names]
    largest: dict[nn.Module, Tensor] = {}

    def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found = inputs[0].abs().amax()
        largest[module] = torch.maximum(largest.get(module, found), found)

    hooks = [linear.register_forward_pre_hook(observe) for linear in linears]
    with torch.inference_mode():
        run()
    for hook in hooks:
        hook.remove()
    for linear in linears:
        assert isinstance(linear, nn.Linear)
        weight = linear.weight.detach()
        linear.weight = nn.Parameter(on_grid(weight, weight.abs().amax()), requires_grad=False)
        linear.register_forward_pre_hook(lambda module, inputs: (on_grid(inputs[0], largest[module]),))


def on_grid(values: Tensor, largest: Tensor) -> Tensor:
    """Return `values` rounded to 8 bits between -`largest` and `largest`."""
    scale = largest / LEVELS
    return (values / scale).round().clamp(-LEVELS, LEVELS) * scale
