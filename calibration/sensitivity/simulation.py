"""The reference transformer with simulated quantised linears: operands are rounded to 8 bits and multiplied in float32.

Each linear is simulated in its place. An export folds scales (smoothing, equalisation) into the weights around a
linear; these scales are powers of two. It applies rotations to both operands; these are orthonormal. The simulation
undoes both within the linear, so every other activation is equal to the reference's activation. Thus any subset of
linears can be quantised.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen_image_engine.calibration.quantise import fp8, int8
from qwen_image_engine.calibration.quantise.channel_scales import channel_scales
from qwen_image_engine.calibration.quantise.hadamard import rotate
from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.calibration.quantise.static_input import SCALE_DTYPE, stored_scale
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import read_tensors
from qwen_image_engine.reference.networks.transformer import KeyValue, Transformer

TRANSFORMER = "transformer"


class Simulation:
    """A transformer whose linears can be quantised temporarily, with the scales of the prefix or of the step.

    The scales are equal to the scales in the exported graphs, whatever the network's dtype is.
    """

    def __init__(self, checkpoint: Checkpoint, network: Transformer, quantised: QuantisedNetwork) -> None:
        """Take a network in any dtype and on any device.

        Args:
            checkpoint: checkpoint with the weights of `network`.
            network: network that is changed while linears are quantised.
            quantised: quantisation of each linear; static scales come from a calibration.

        Raises:
            QwenImageError: the checkpoint's tensors do not match the network.
        """
        self._network, self._quantised = network, quantised
        self._prefix = checkpoint.components[TRANSFORMER].layout.prefix
        tensors = {tensor.name: tensor for tensor in read_tensors(checkpoint, TRANSFORMER)}
        self._rows, self._columns = channel_scales(tensors, quantised)
        self._running = _Running()
        self._linears = {name: self._linear(name) for name in quantised.layers}  # as they are while none is quantised
        self._simulations: dict[str, nn.Module] = {}

    @contextmanager
    def quantised(self, linears: Collection[str]) -> Iterator[None]:
        """Quantise linears during the block, and restore the network afterwards.

        Linears are named as in `QuantisedNetwork.layers`. Each weight is quantised when it is first named.
        The codes are held from then on, in addition to the network's weights.
        """
        kept: dict[str, nn.Module] = {}
        try:
            for name in linears:
                module = name.removeprefix(self._prefix)
                if name not in self._simulations:
                    self._simulations[name] = self._simulated(name)
                self._network.set_submodule(module, self._simulations[name])
                kept[module] = self._linears[name]
            yield
        finally:
            for module, linear in kept.items():
                self._network.set_submodule(module, linear)

    def prefix(self, text_states: Tensor, cos: Tensor, sin: Tensor) -> list[KeyValue]:
        """Run the prefix with the scales of the prefix; see `Transformer.prefix`."""
        self._running.component = "prefix"
        return self._network.prefix(text_states, cos, sin)

    def step(self, latents: Tensor, features: Tensor, cos: Tensor, sin: Tensor, cache: list[KeyValue]) -> Tensor:
        """Run a step with the scales of the step; see `Transformer.step`."""
        self._running.component = "step"
        return self._network.step(latents, features, cos, sin, cache)

    def _linear(self, name: str) -> nn.Linear:
        linear = self._network.get_submodule(name.removeprefix(self._prefix))
        assert isinstance(linear, nn.Linear)
        return linear

    def _weight(self, name: str) -> Tensor:
        """Return the weight (N, K) of a linear in float32, with the scales of its rows and columns."""
        weight = self._linears[name].weight.detach().float()
        if name in self._rows:
            weight = weight * self._rows[name].row_scales.to(weight.device)[:, None]
        if name in self._columns:
            weight = weight / self._columns[name].column_scales.to(weight.device)
        return weight

    def _simulated(self, name: str) -> nn.Module:
        layer, weight = self._quantised.layers[name], self._weight(name)
        device = weight.device
        rows = self._rows[name].row_scales.to(device) if name in self._rows else None
        columns = self._columns[name].column_scales.to(device) if name in self._columns else None
        item = self._quantised.inputs.get(name)
        feedback = item.error_feedback() if item is not None else None
        if layer.precision == "fp8":
            sharing = self._quantised.sharing_scale(name)
            largest = max(float(self._weight(other).abs().max()) for other in sharing)
            scale = stored_scale(largest / fp8.LARGEST if largest > 0 else 1.0)
            scales = torch.tensor([[scale]], device=device)
            codes = fp8.quantise_rows(weight, scale, feedback)
        else:
            assert layer.precision == "int8"
            dtype = torch.float32 if item is None else SCALE_DTYPE
            codes, row_scales = int8.quantise_rows(rotate(weight, layer.rotation), dtype, feedback)
            scales = row_scales.float()[:, None]
        if rows is not None:
            scales = scales / rows[:, None]
        if item is None:
            return _PerToken(codes, scales, columns, layer.rotation)
        static = {component: item.scale(component, layer.precision) for component in item.statistics}
        return _Static(codes, scales, columns, static, layer.precision, self._running)


@dataclass
class _Running:
    """The name of the component that the network runs as."""

    component: str = ""


class _Linear(nn.Module):
    """A linear (N, K) of codes (N, K) and scales (N, 1) or (1, 1) whose input channels are scaled by `columns` (K,)."""

    def __init__(self, codes: Tensor, scales: Tensor, columns: Tensor | None) -> None:
        super().__init__()
        self._codes, self._scales, self._columns = codes, scales, columns

    def forward(self, x: Tensor) -> Tensor:
        """Compute (…, K) -> (…, N) in the dtype of `x`."""
        values = x.float()
        if self._columns is not None:
            values = values * self._columns
        return F.linear(self._rounded(values), self._codes.float() * self._scales).to(x.dtype)

    def _rounded(self, values: Tensor) -> Tensor:
        raise NotImplementedError


class _Static(_Linear):
    """A linear with one scale for the whole input, different for each component."""

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        columns: Tensor | None,
        static: Mapping[str, float],
        precision: str,
        running: _Running,
    ) -> None:
        super().__init__(codes, scales, columns)
        self._static, self._running = static, running
        self._quantise = {"fp8": fp8.quantise, "int8": int8.quantise}[precision]

    def _rounded(self, values: Tensor) -> Tensor:
        scale = self._static.get(self._running.component)
        if scale is None:
            assert self._running.component == "prefix"  # in whose last block what this linear gives reaches nothing
            return values
        return self._quantise(values, scale).float() * scale


class _PerToken(_Linear):
    """A linear with one scale a token, after a rotation of blocks of channels that matches the weight's rotation."""

    def __init__(self, codes: Tensor, scales: Tensor, columns: Tensor | None, rotation: int) -> None:
        super().__init__(codes, scales, columns)
        self._rotation = rotation

    def _rounded(self, values: Tensor) -> Tensor:
        rotated = rotate(values.flatten(0, -2), self._rotation).reshape(values.shape)
        largest = rotated.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return (rotated / largest * int8.LEVELS).round() * (largest / int8.LEVELS)
