"""A copy of a transformer's graph that also outputs the result of each linear and block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from qwen_image_engine.calibration.rules.linears import LINEARS, WEIGHT
from qwen_image_engine.engines.core.contract import Contract, TensorSpec
from qwen_image_engine.export.graph.nodes import cast
from qwen_image_engine.runtime.bundle.manifest_entries import ComponentEntry, QuantisedLayer

_LAST_OF_BLOCK = ".img_mlp.out"


@dataclass(frozen=True)
class LayerGraph:
    """The copy: file, contract, and the output of each layer by the network's own name for the layer."""

    model: Path
    contract: Contract
    outputs: Mapping[str, str]


def scaled_layers(layers: Mapping[str, QuantisedLayer]) -> frozenset[str]:
    """Return the linears whose outputs are not the reference's.

    Export scaled the channels of these outputs for the linear that reads them.
    """
    seconds = tuple(f".{second}" for _, second in LINEARS["transformer"].pairs)
    return frozenset(
        layer.equalised_with for name, layer in layers.items() if layer.equalised_with and name.endswith(seconds)
    )


@contextmanager
def layer_graph(bundle: Path, entry: ComponentEntry, prefix: str) -> Iterator[LayerGraph]:
    """Write the copy beside the graph, and remove it again.

    Paths of external data are relative to the graph's folder.

    Args:
        bundle: folder of the bundle.
        entry: manifest entry of a component of the transformer.
        prefix: prefix of the network's names in the names of its stored weights.

    Raises:
        OSError: the copy cannot be written.
    """
    original = bundle / entry.model
    model = ir.load(original)
    found = dict(_layers(model.graph, entry.quantised_layers, prefix))
    specs = []
    for index, (layer, value) in enumerate(found.items()):
        value = _in_float32(model.graph, value)
        model.graph.outputs.append(value)
        specs.append(_spec(value, layer, index))
    path = original.with_suffix(".layers.onnx")
    try:
        ir.save(model, path)
        contract = replace(entry.contract, outputs=(*entry.contract.outputs, *specs))
        yield LayerGraph(path, contract, {layer: spec.name for layer, spec in zip(found, specs, strict=True)})
    finally:
        path.unlink(missing_ok=True)


def _layers(graph: ir.Graph, quantised: Mapping[str, QuantisedLayer], prefix: str) -> Iterator[tuple[str, ir.Value]]:
    """Yield each linear and its output; after the last linear of a block, yield the block and the block's output."""
    scaled = scaled_layers(quantised)
    for node in graph:
        weight = _weight(node)
        if weight is None:
            continue
        stored = weight.removesuffix(WEIGHT)
        output = node.outputs[0]
        if stored in quantised and quantised[stored].input_scale is None:
            output = _reader(output).outputs[0]  # rows were divided by their magnitudes, which the product gets back
        if stored not in scaled:
            yield stored.removeprefix(prefix), output
        if stored.endswith(_LAST_OF_BLOCK):
            yield stored.removeprefix(prefix).removesuffix(_LAST_OF_BLOCK), _residual(output)


def _weight(node: ir.Node) -> str | None:
    """Return the weight that a Gemm reads, as it is or dequantised; None if the node is no such Gemm."""
    value = node.inputs[1] if node.op_type in ("Gemm", "GemmFloat8") else None
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]
    return value.name if value is not None and value.is_initializer() else None


def _residual(value: ir.Value) -> ir.Value:
    """Return the sum that the output of a block's last linear goes into, through the gate."""
    node = _reader(value)
    while node.op_type != "Add":
        node = _reader(node.outputs[0])
    return node.outputs[0]


def _reader(value: ir.Value) -> ir.Node:
    (use,) = value.uses()
    return use.node


def _in_float32(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Return the value, or a Cast of it to float32.

    Engines return no arrays of bfloat16, which numpy does not have.
    """
    if value.dtype == ir.DataType.FLOAT:
        return value
    node = cast(value, ir.DataType.FLOAT)
    node.outputs[0].name = f"{value.name}_in_float32"
    graph.append(node)
    return node.outputs[0]


def _spec(value: ir.Value, layer: str, index: int) -> TensorSpec:
    assert value.name is not None
    assert value.shape is not None
    assert value.dtype is not None
    # Rows are the batch's tokens, of whatever the graph lays side by side: an axis of each output's own.
    shape = tuple(axis if isinstance(axis, int) else f"rows_{index}_{i}" for i, axis in enumerate(value.shape))
    return TensorSpec(value.name, shape, value.dtype.numpy().name, f"output of {layer}")
