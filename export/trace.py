"""A component's graph from fake weights: torch.onnx.export sees shapes and dtypes, never a value.

The 7B step graph traces in half a minute and half a gigabyte this way.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qwen_image_engine.engines.contract import Contract, contract, split_axis
from qwen_image_engine.engines.errors import QwenImageError
from qwen_image_engine.reference.checkpoint import Checkpoint
from qwen_image_engine.reference.engine import FORWARD, NETWORK, dims, empty_network

OPSET = 23
IR_VERSION = 11
UNPLACED = "unplaced"
"""Location of a weight that has no bytes yet: reading one before it is placed fails."""

# An example size must differ from every other axis, or torch ties the two; 0 and 1 are specialised. Primes above 20.
_EXAMPLE_SIZES = {"batch": 3, "text": 23, "prefix": 29, "tokens": 31, "height": 5, "width": 7}


class _Named(nn.Module):
    """Positional inputs in the order of the contract, to the component's outputs."""

    def __init__(self, component: Contract, network: nn.Module) -> None:
        super().__init__()
        self.component = component
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = {spec.name: tensor for spec, tensor in zip(self.component.inputs, inputs, strict=True)}
        return tuple(FORWARD[self.component.component](self.network, named))


def trace(checkpoint: Checkpoint, component: str, dtype: torch.dtype) -> ir.Model:
    """The graph of `component` as torch exports it, computing in `dtype`, inputs and outputs as in the contract.

    Initializers have the checkpoint's tensor names and no bytes (`UNPLACED`).
    """
    spec = contract(component, dims(checkpoint))
    mode = FakeTensorMode()
    network = _fake_weights(empty_network(checkpoint, NETWORK[component]), mode, dtype)
    axes = {name: torch.export.Dim(name) for name in spec.symbols()}
    with mode:
        example = tuple(
            torch.empty([_example_size(axis) for axis in port.shape], dtype=getattr(torch, port.dtype))
            for port in spec.inputs
        )
    shapes = tuple(
        {index: _dim(axis, axes) for index, axis in enumerate(port.shape) if isinstance(axis, str)}
        for port in spec.inputs
    )
    with _quiet():
        program: Any = torch.onnx.export(
            _Named(spec, network),
            example,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            input_names=[port.name for port in spec.inputs],
            output_names=[port.name for port in spec.outputs],
            dynamic_shapes={"inputs": shapes},
        )
    model: ir.Model = program.model
    model.ir_version = IR_VERSION
    model.graph.name = component
    _forget_values(model, checkpoint.components[NETWORK[component]].layout.prefix)
    _check_axes(model, spec)
    return model


def _fake_weights(network: nn.Module, mode: FakeTensorMode, dtype: torch.dtype) -> nn.Module:
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    with mode:
        fake = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
    network.load_state_dict(fake, strict=True, assign=True)
    return network.requires_grad_(False)


def _example_size(axis: str | int) -> int:
    if isinstance(axis, int):
        return axis
    factor, name = split_axis(axis)
    return factor * _EXAMPLE_SIZES[name]


def _dim(axis: str, axes: dict[str, Any]) -> Any:
    factor, name = split_axis(axis)
    return axes[name] if factor == 1 else factor * axes[name]


def _forget_values(model: ir.Model, prefix: str) -> None:
    """Give weights the stored names, and replace their fake values."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        if not name.startswith("network.") or name in ("network.mean", "network.std") or name.endswith(".index"):
            continue
        stored = prefix + name.removeprefix("network.")
        value.const_value = ir.ExternalTensor(
            UNPLACED, None, None, tensor.dtype, shape=ir.Shape(tensor.shape), name=stored
        )
        value.name = stored


def _check_axes(model: ir.Model, spec: Contract) -> None:
    """Every symbolic axis must have stayed free: torch fixes one whose example size it ties to another."""
    for port, value in zip((*spec.inputs, *spec.outputs), (*model.graph.inputs, *model.graph.outputs), strict=True):
        found = [dim if isinstance(dim, int) else None for dim in value.shape or ()]
        expected = [dim if isinstance(dim, int) else None for dim in port.shape]
        if value.name != port.name or found != expected:
            raise QwenImageError(
                f"{spec.component}: torch traced {value.name} {value.shape}, expected {port.name} {port.describe()}"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx reports its progress and warns of its own internals; errors are raised all the same."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
