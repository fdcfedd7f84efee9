"""Static scales for random weights at full size, for which a calibration would take hours.

The scales are the same for every input and assume normal activations. Random weights have no outliers, and the time of
a kernel does not depend on scales. The error of such an engine against torch shows only that it works; it does not
measure accuracy.
"""

import torch

from qwen_image_engine.calibration.observe.activations import OUTPUT
from qwen_image_engine.calibration.observe.record import Calibration
from qwen_image_engine.calibration.observe.statistics import InputStatistics
from qwen_image_engine.calibration.rules.linears import LINEARS
from qwen_image_engine.reference.networks.transformer import Transformer

SYNTHETIC = "synthetic scales"

_LARGEST = 4.5  # of a normal input of a few thousand channels over a thousand rows


def synthetic_calibration(network: Transformer) -> Calibration:
    """Return the calibration that normal inputs of every linear would give."""
    modules = dict(network.named_modules())
    seen = {
        name: _normal(module.in_features)
        for name, module in modules.items()
        if isinstance(module, torch.nn.Linear) and name.startswith(LINEARS["transformer"].blocks)
    }
    # FP8 attention reads the values, which are an output and not an input.
    seen |= {f"{name}{OUTPUT}": _normal(modules[name].out_features) for name in seen if name.endswith("attn.to_v")}
    return Calibration(dict.fromkeys(("prefix", "prefix_image", "step"), seen), None, "synthetic")  # type: ignore[arg-type]


def _normal(channels: int) -> InputStatistics:
    return InputStatistics(
        channel_absmax=torch.full((channels,), _LARGEST),
        channel_mean_square=torch.ones(channels),
        percentiles=torch.tensor([2.58, 3.29, 3.89, 4.42]),
        absmax_by_step=torch.tensor([_LARGEST]),
        gram=torch.zeros(0, 0, 0),
    )
