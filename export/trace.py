"""The graph of a component, traced from fake weights: torch.onnx.export sees shapes and dtypes, never a value.

The 7B step graph takes half a minute and half a gigabyte of memory.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Container, Iterator
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract import Contract, contract, split_axis
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.export.graph.external_weights import set_unplaced
from qwen_image_engine.export.graph.shapes import axes
from qwen_image_engine.export.node_by_node import node_by_node
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.components import dims, forward
from qwen_image_engine.reference.load import empty_network

OPSET = 23
IR_VERSION = 11

# An example size must differ from every other axis, or torch ties the two; 0 and 1 are specialised.
_EXAMPLE_SIZES = {"batch": 3, "text": 23, "prefix": 29, "tokens": 31, "height": 5, "width": 7, "image": 37, "slots": 11}


# Parts of one torch operation, whose results torch gives no shape.
_SAME_SHAPE = ("Sigmoid", "Sqrt")


class _Named(nn.Module):
    """A module with positional inputs in the order of the contract, and the component's outputs."""

    def __init__(self, component: Contract, network: nn.Module) -> None:
        super().__init__()
        self.component = component
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = {spec.name: tensor for spec, tensor in zip(self.component.inputs, inputs, strict=True)}
        return forward(self.component, self.network, named)


def trace(checkpoint: Checkpoint, component: str, dtype: str) -> ir.Model:
    """Return the graph of `component` as torch exports it.

    The graph computes in `dtype` (torch's name) and keeps the cache in it. Inputs and outputs match the contract.

    Initializers have the checkpoint's tensor names and no bytes.
    """
    spec = contract(component, dims(checkpoint), dtype)
    mode = FakeTensorMode()
    network = _fake_weights(empty_network(checkpoint, COMPONENTS[component].network), mode, getattr(torch, dtype))
    symbols = {name: torch.export.Dim(name) for name in spec.symbols()}
    with mode:
        example = tuple(
            torch.empty([_example_size(axis) for axis in port.shape], dtype=getattr(torch, port.dtype))
            for port in spec.inputs
        )
    shapes = tuple(
        {index: _dim(axis, symbols) for index, axis in enumerate(port.shape) if isinstance(axis, str)}
        for port in spec.inputs
    )
    with _quiet(), node_by_node():
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
    _forget_values(model, set(network.state_dict()), checkpoint.stored(COMPONENTS[component].network).layout.prefix)
    _name_axes(model, spec)
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


def _dim(axis: str, symbols: dict[str, Any]) -> Any:
    factor, name = split_axis(axis)
    return symbols[name] if factor == 1 else factor * symbols[name]


def _forget_values(model: ir.Model, parameters: Container[str], prefix: str) -> None:
    """Give weights their stored names, and drop their fake values."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        if name.removeprefix("network.") not in parameters:
            continue  # a derived buffer, whose values are real
        stored = prefix + name.removeprefix("network.")
        set_unplaced(value, stored, ir.Shape(tensor.shape.numpy()), tensor.dtype)


def _name_axes(model: ir.Model, spec: Contract) -> None:
    """Give torch's symbols the contract's names everywhere, and check that every symbolic axis has stayed free.

    torch fixes an axis whose example size it ties to another, and names the root of "16*height" itself.
    """
    names: dict[str, str] = {}
    for port, value in zip((*spec.inputs, *spec.outputs), (*model.graph.inputs, *model.graph.outputs), strict=True):
        found = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ()]
        fixed = [isinstance(dim, int) and dim for dim in port.shape]
        if value.name != port.name or [isinstance(dim, int) and dim for dim in found] != fixed:
            raise QwenImageError(
                f"{spec.component}: torch traced {value.name} {found}, expected {port.name} {port.describe()}"
            )
        for name, axis in zip(found, port.shape, strict=True):
            if isinstance(name, str) and isinstance(axis, str):
                names |= _meaning(name, axis)
    for value in _values(model.graph):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])
    for node in model.graph:
        source, output = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type in _SAME_SHAPE and output.shape is None and source is not None:
            output.shape, output.type = ir.Shape(axes(source) or ()), source.type


def _meaning(found: str, axis: str) -> dict[str, str]:
    """Return the contract's name for torch's own symbol in `found`; empty if it has none.

    `found` is torch's expression for an `axis` of the contract: "s5", or "2*s5".
    """
    if found.isidentifier():
        return {found: axis}
    (factor, star, root), (wanted, _, name) = found.partition("*"), axis.partition("*")
    return {root: name} if star and factor == wanted and root.isidentifier() else {}


def _renamed(dim: int | ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    return re.sub(r"[A-Za-z_]\w*", lambda match: names.get(match[0], match[0]), str(dim.value))


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch.onnx, which reports its progress and warns of its own internals.

    Errors are raised all the same.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
