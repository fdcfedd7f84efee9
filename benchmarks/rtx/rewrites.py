"""Rewrites of an exported bf16 step: spellings of a block that the exports do not have, to see what they would cost.

Each takes the graph and its contract, rewrites the graph, and returns the contract that it has then. Those with keys or
values bound whole show kernels alone: attention reads rows that the same plan writes through another binding, which the
compiler cannot know.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qwen_image_engine.engines.core.contract import Contract, TensorSpec
from qwen_image_engine.export.graph.nodes import add_constant, cast

Rewrite = Callable[[ir.Model, Contract], Contract]


@dataclass(frozen=True)
class _Attention:
    """An attention, the transposes before it and behind it, and the concatenations of its keys and values."""

    node: ir.Node
    keys: ir.Node
    values: ir.Node
    behind: ir.Node

    @property
    def joins(self) -> tuple[ir.Node, ir.Node]:
        return _producer(self.keys.inputs[0]), _producer(self.values.inputs[0])


def _attentions(graph: ir.Graph) -> list[_Attention]:
    return [
        _Attention(node, _producer(node.inputs[1]), _producer(node.inputs[2]), _user(node.outputs[0]))
        for node in graph
        if node.op_type == "Attention"
    ]


def exported(model: ir.Model, contract: Contract) -> Contract:
    """Leave the graph as it was exported."""
    return contract


def negated(model: ir.Model, contract: Contract) -> Contract:
    """Negate the input of an MLP's second product, where the export doubles it."""
    graph = model.graph
    for name in ("two", "half"):
        for product in [*graph.initializers[name].consumers()]:
            opposite = _node("Neg", [_value(product.inputs[0])], product.outputs[0].shape)
            graph.insert_before(product, opposite)
            _replace(product.outputs[0], opposite.outputs[0])
    RemoveUnusedNodesPass()(model)
    return contract


def keys_and_values_whole(model: ir.Model, contract: Contract) -> Contract:
    """Bind keys and values with room for the step's own, which become outputs: (batch, prefix + tokens, heads, dim)."""
    return _whole(model, contract, ("key", "value"))


def keys_and_values_whole_by_heads(model: ir.Model, contract: Contract) -> Contract:
    """Bind both whole, (batch, heads, prefix + tokens, dim)."""
    return _whole(model, contract, ("key", "value"), by_heads=True)


def values_whole_by_heads(model: ir.Model, contract: Contract) -> Contract:
    """Bind values alone whole, (batch, heads, prefix + tokens, dim)."""
    return _whole(model, contract, ("value",), by_heads=True)


def _whole(model: ir.Model, contract: Contract, kinds: Collection[str], *, by_heads: bool = False) -> Contract:
    graph = model.graph
    shapes: dict[str, tuple[str | int, ...]] = {}
    own: list[TensorSpec] = []
    for attention in _attentions(graph):
        transposes = (attention.keys, attention.values)
        for kind, transpose, join in zip(("key", "value"), transposes, attention.joins, strict=True):
            if kind not in kinds:
                continue
            cache, new = _value(join.inputs[0]), _value(join.inputs[1])
            heads, channels = int(new.shape[2]), int(new.shape[3])  # type: ignore[index,arg-type]
            before, behind = (("batch", heads), (channels,)) if by_heads else (("batch",), (heads, channels))
            cache.shape = ir.Shape([*before, "cache", *behind])
            shapes[str(cache.name)] = (*before, "prefix+tokens", *behind)
            _replace((transpose if by_heads else join).outputs[0], cache)
            # As rows, as the kernel before has them: in four axes the compiler copies them.
            rows = _value(_producer(new).inputs[0])
            rows.name = f"own_{cache.name}"
            graph.outputs.append(rows)
            own.append(TensorSpec(rows.name, ("batch", "tokens", heads * channels), "bfloat16", ""))
    RemoveUnusedNodesPass()(model)
    return _with(contract, shapes, own)


def keys_and_values_scattered(model: ir.Model, contract: Contract) -> Contract:
    """Write the step's own into a whole cache by ScatterND, for one picture: (prefix + tokens, heads, dim)."""
    graph = model.graph
    shapes: dict[str, tuple[str | int, ...]] = {}
    places = ir.val("rows", shape=ir.Shape(["tokens", 1]), type=ir.TensorType(ir.DataType.INT64))
    first = add_constant(graph, "first_axis", np.array([0], dtype=np.int64))
    for attention in _attentions(graph):
        for join in attention.joins:
            cache, new = _value(join.inputs[0]), _value(join.inputs[1])
            form = [int(size) for size in list(new.shape or ())[2:]]  # type: ignore[arg-type]
            cache.shape = ir.Shape(["cache", *form])
            shapes[str(cache.name)] = ("prefix+tokens", *form)
            one = _node("Squeeze", [new, first], ["tokens", *form])
            written = _node("ScatterND", [cache, places, one.outputs[0]], ["cache", *form])
            whole = _node("Unsqueeze", [written.outputs[0], first], [1, "cache", *form])
            graph.insert_before(join, [one, written, whole])
            _replace(join.outputs[0], whole.outputs[0])
    RemoveUnusedNodesPass()(model)
    graph.inputs.append(places)
    found = _with(contract, shapes)
    return replace(found, inputs=(*found.inputs, TensorSpec("rows", ("tokens", 1), "int64", "")))


def keys_beside_values(model: ir.Model, contract: Contract) -> Contract:
    """Concatenate keys and values in one go, side by side as twice the heads."""
    graph = model.graph
    for attention in _attentions(graph):
        keys, values = attention.joins
        pairs = [(_value(key), _value(value)) for key, value in zip(keys.inputs, values.inputs, strict=True)]
        heads, channels = (int(size) for size in list(pairs[0][0].shape or ())[2:])  # type: ignore[arg-type]
        halves = [
            _node("Concat", pair, ["batch", axis, 2 * heads, channels], {"axis": 2})
            for axis, pair in zip(("prefix", "tokens"), pairs, strict=True)
        ]
        joint = _node("Concat", [half.outputs[0] for half in halves], ["batch", None, 2 * heads, channels], {"axis": 1})
        apart = _node("Split", joint.outputs, ["batch", None, heads, channels], {"axis": 2, "num_outputs": 2}, 2)
        graph.insert_before(attention.keys, [*halves, joint, apart])
        for transpose, part in zip((attention.keys, attention.values), apart.outputs, strict=True):
            transpose.replace_input_with(0, part)
    RemoveUnusedNodesPass()(model)
    graph.sort()
    return contract


def values_joined(model: ir.Model, contract: Contract) -> Contract:
    """Concatenate values with queries and keys, so that the build makes one product of all three."""
    graph = model.graph
    for both in [node for node in graph if node.op_type == "Concat"]:
        query, key = (_value(item) for item in both.inputs[:2])
        maker = query.producer()
        if maker is None or maker.op_type != "Gemm":
            continue
        read = _value(_producer(query).inputs[0])
        (value,) = (use.node.outputs[0] for use in read.uses() if use.node.outputs[0] not in (query, key))
        found = _side_by_side(graph, [query, key, value], [[query, key], [value]], both)
        _replace(both.outputs[0], found[0])
        _replace_but(value, found[1])
    RemoveUnusedNodesPass()(model)
    graph.sort()
    return contract


def gates_joined(model: ir.Model, contract: Contract) -> Contract:
    """Concatenate the results of both products of an MLP, so that the build makes one product of them."""
    graph = model.graph
    for sigmoid in [node for node in graph if node.op_type == "Sigmoid"]:
        gate = _value(sigmoid.inputs[0])
        maker = _producer(gate)
        if maker.op_type != "Gemm" or len({use.node for use in _value(maker.inputs[0]).uses()}) != 2:
            continue
        (up,) = (use.node.outputs[0] for use in _value(maker.inputs[0]).uses() if use.node is not maker)
        found = _side_by_side(graph, [gate, up], [[gate], [up]], _producer(up))
        for old, new in zip((gate, up), found, strict=True):
            _replace_but(old, new)
    RemoveUnusedNodesPass()(model)
    graph.sort()
    return contract


def _side_by_side(
    graph: ir.Graph, values: Sequence[ir.Value], parts: Sequence[Sequence[ir.Value]], behind: ir.Node
) -> Sequence[ir.Value]:
    """Return the columns of `values`, concatenated and split into `parts`, by nodes behind `behind`."""
    rows = next(iter(values[0].shape or ()))
    widths = [sum(int(list(item.shape or ())[1]) for item in part) for part in parts]  # type: ignore[call-overload]
    whole = _node("Concat", values, [rows, sum(widths)], {"axis": 1})
    sizes = add_constant(graph, "widths_" + "_".join(map(str, widths)), np.array(widths, np.int64))
    split = _node("Split", [whole.outputs[0], sizes], [rows, None], {"axis": 1}, len(widths))
    for output, width in zip(split.outputs, widths, strict=True):
        output.shape = ir.Shape([rows, width])
    graph.insert_after(behind, [whole, split])
    return split.outputs


def _replace_but(old: ir.Value, new: ir.Value) -> None:
    """Let all nodes read `new` instead of `old`, but for the Concat that `new` comes from."""
    kept = _producer(_producer(new).inputs[0])
    for use in [use for use in old.uses() if use.node is not kept]:
        use.node.replace_input_with(use.idx, new)


def output_by_einsum(model: ir.Model, contract: Contract) -> Contract:
    """Let the output projection read attention's result as heads, by Einsum, without a transpose before it."""
    graph = model.graph
    for attention in _attentions(graph):
        heads_first = attention.node.outputs[0]
        product = _user(_user(attention.behind.outputs[0]).outputs[0])
        weight, rows = _value(product.inputs[1]), product.outputs[0]
        heads, columns = int(list(heads_first.shape or ())[1]), int(list(rows.shape or ())[1])  # type: ignore[arg-type]
        form = [columns, heads, -1]
        by_heads = _node("Reshape", [weight, add_constant(graph, "weight_by_heads", np.array(form, np.int64))], form)
        summed = _node(
            "Einsum",
            [heads_first, by_heads.outputs[0]],
            ["batch", "tokens", columns],
            {"equation": "bhtd,chd->btc"},
        )
        flat = add_constant(graph, f"shape_n_{columns}", np.array([-1, columns], dtype=np.int64))
        result = _node("Reshape", [summed.outputs[0], flat], rows.shape)
        graph.insert_before(product, [by_heads, summed, result])
        _replace(rows, result.outputs[0])
    RemoveUnusedNodesPass()(model)
    return contract


def residual_in_norm(model: ir.Model, contract: Contract) -> Contract:
    """Let the norm add the residual in float32 for itself, beside the sum in bf16 for the next residual."""
    graph = model.graph
    for to_float, sums in [*_norms(graph)]:
        parts = [cast(_value(item), ir.DataType.FLOAT) for item in sums.inputs]
        total = ir.node("Add", [part.outputs[0] for part in parts])
        total.outputs[0].type, total.outputs[0].shape = to_float.outputs[0].type, to_float.outputs[0].shape
        graph.insert_before(to_float, [*parts, total])
        _replace(to_float.outputs[0], total.outputs[0])
    RemoveUnusedNodesPass()(model)
    return contract


def norm_in_one_pass(model: ir.Model, contract: Contract) -> Contract:
    """Spell the norm by hand, its variance as mean(x^2) - mean(x)^2."""
    graph = model.graph
    last = add_constant(graph, "last_axis", np.array([-1], dtype=np.int64))
    least = add_constant(graph, "layer_norm_epsilon", np.array(1e-6, dtype=np.float32))
    for to_float, _ in [*_norms(graph)]:
        norm, x = _user(to_float.outputs[0]), to_float.outputs[0]
        nodes: list[ir.Node] = []

        def add(operator: str, *inputs: ir.Value, _nodes: list[ir.Node] = nodes, **attributes: int) -> ir.Value:
            node = ir.node(operator, inputs, attributes)
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            _nodes.append(node)
            return node.outputs[0]

        mean = add("ReduceMean", x, last, keepdims=1)
        variance = add("Sub", add("ReduceMean", add("Mul", x, x), last, keepdims=1), add("Mul", mean, mean))
        inverse = add("Reciprocal", add("Sqrt", add("Add", variance, least)))
        unit = add("Mul", add("Sub", x, mean), inverse)
        unit.shape = norm.outputs[0].shape
        graph.insert_before(norm, nodes)
        _replace(norm.outputs[0], unit)
    RemoveUnusedNodesPass()(model)
    return contract


def _norms(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Yield the Cast before every layer norm that reads a residual sum, and the sum."""
    for node in graph:
        if node.op_type == "LayerNormalization":
            to_float = _producer(node.inputs[0])
            sums = _value(to_float.inputs[0]).producer()
            if sums is not None and sums.op_type == "Add":
                yield to_float, sums


def one_tanh(model: ir.Model, contract: Contract) -> Contract:
    """Compute the tanh of all factors of the modulation before they are split, for both gates at once."""
    graph = model.graph
    gates = [node for node in graph if node.op_type == "Tanh"]
    split = _producer(gates[0].inputs[0])
    factors = _value(split.inputs[0])
    whole = _node("Tanh", [factors], factors.shape)
    parts = _node("Split", whole.outputs, split.outputs[0].shape, {"axis": -1, "num_outputs": 4}, 4)
    graph.insert_before(gates[0], [whole, parts])
    for gate in gates:
        _replace(gate.outputs[0], parts.outputs[[*split.outputs].index(_value(gate.inputs[0]))])
    RemoveUnusedNodesPass()(model)
    return contract


def ends_in_bf16(model: ir.Model, contract: Contract) -> Contract:
    """Take latents and time features in bf16 and give the velocity in bf16, rounded and widened by the caller."""
    graph = model.graph
    names = ("latents", "time_features")
    for value in [value for value in graph.inputs if value.name in names]:
        rounded = next(node for node in value.consumers() if node.op_type == "Cast")
        value.type = rounded.outputs[0].type
        _replace(rounded.outputs[0], value)
    velocity = _value(graph.outputs[0])
    reshaped = _producer(velocity)
    widened = _producer(reshaped.inputs[0])
    assert widened.op_type == "Cast"
    velocity.type = _value(widened.inputs[0]).type
    reshaped.replace_input_with(0, widened.inputs[0])
    RemoveUnusedNodesPass()(model)

    def narrow(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(replace(spec, dtype="bfloat16") if spec.name in (*names, "velocity") else spec for spec in specs)

    return replace(contract, inputs=narrow(contract.inputs), outputs=narrow(contract.outputs))


def _with(
    contract: Contract, shapes: Mapping[str, tuple[str | int, ...]], outputs: Sequence[TensorSpec] = ()
) -> Contract:
    inputs = (replace(spec, shape=shapes.get(spec.name, spec.shape)) for spec in contract.inputs)
    return replace(contract, inputs=tuple(inputs), outputs=(*contract.outputs, *outputs))


def _node(operator: str, inputs: Sequence[ir.Value], shape: Any, attributes: Any = None, outputs: int = 1) -> ir.Node:
    """Return a node that is in no graph yet, with outputs of its first input's type and of this shape."""
    node = ir.node(operator, inputs, attributes, num_outputs=outputs)
    for value in node.outputs:
        value.type, value.shape = inputs[0].type, ir.Shape(shape)
    return node


def _replace(old: ir.Value, new: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(old, new)


def _value(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _producer(value: ir.Value | None) -> ir.Node:
    node = _value(value).producer()
    assert node is not None
    return node


def _user(value: ir.Value) -> ir.Node:
    """Return the only node that reads a value."""
    (node,) = {use.node for use in value.uses()}
    return node
