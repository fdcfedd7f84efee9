"""Seeded changes of an ONNX graph's structure: nodes, operators, attributes, shapes, external data, functions."""

import random
from collections.abc import Callable

import onnx
from onnx import TensorProto, helper

Random = random.Random

_OPERATORS = ("Identity", "MatMul", "Expand", "Tile", "Resize", "Loop", "If", "Scan", "Range", "Foo", "", "\0")
_DOMAINS = ("com.microsoft", "ai.onnx.ml", "ai.onnx.training", "foreign", "", "\0")
_INTEGERS = (0, -1, 1, 2**31 - 1, 2**31, 2**40, -(2**63), 2**63 - 1)
_LOCATIONS = ("/etc/passwd", "../manifest.json", "../vae/weights.safetensors", "/dev/zero", "", "absent", "a" * 5000)
_OFFSETS = ("-1", "0", "1", "x", "", str(2**40), str(2**63), str(2**64), "9" * 400)


def change_graph(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Return the bytes of a graph with one change, and the change in a few words."""
    model = onnx.load_from_string(data)
    detail = rng.choice(_CHANGES)(model, rng)
    return model.SerializeToString(), detail


def _node(model: onnx.ModelProto, rng: Random) -> onnx.NodeProto:
    return rng.choice(model.graph.node)


def _remove_node(model: onnx.ModelProto, rng: Random) -> str:
    node = _node(model, rng)
    model.graph.node.remove(node)
    return f"without the {node.op_type} {node.name}"


def _repeat_node(model: onnx.ModelProto, rng: Random) -> str:
    node = _node(model, rng)
    model.graph.node.append(node)
    return f"the {node.op_type} {node.name} twice"


def _move_node(model: onnx.ModelProto, rng: Random) -> str:
    node = onnx.NodeProto()
    node.CopyFrom(model.graph.node[-1])
    del model.graph.node[-1]
    model.graph.node.insert(rng.randrange(len(model.graph.node)), node)
    return f"the {node.op_type} {node.name} earlier"


def _rename_operator(model: onnx.ModelProto, rng: Random) -> str:
    node = _node(model, rng)
    old, node.op_type = node.op_type, rng.choice(_OPERATORS)
    return f"{old} {node.name} = {node.op_type!r}"


def _rename_domain(model: onnx.ModelProto, rng: Random) -> str:
    node = _node(model, rng)
    node.domain = rng.choice(_DOMAINS)
    if rng.random() < 0.5:
        model.opset_import.append(helper.make_opsetid(node.domain, rng.choice((1, 23, 999))))
    return f"domain of {node.op_type} {node.name} = {node.domain!r}"


def _change_attribute(model: onnx.ModelProto, rng: Random) -> str:
    nodes = [node for node in model.graph.node if node.attribute]
    node = rng.choice(nodes or list(model.graph.node))
    if not node.attribute:
        return _add_attribute(model, rng)
    attribute, value = rng.choice(node.attribute), rng.choice(_INTEGERS)
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = value
    elif attribute.type == onnx.AttributeProto.INTS:
        attribute.ints[:] = rng.choice(([value] * len(attribute.ints), [value], [], [value] * 100))
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice((float("nan"), float("inf"), -1.0, 0.0, 1e38))
    else:
        node.attribute.remove(attribute)
    return f"{attribute.name} of {node.op_type} {node.name}, with {value}"


def _add_attribute(model: onnx.ModelProto, rng: Random) -> str:
    node, value = _node(model, rng), rng.choice(_INTEGERS)
    name = rng.choice(("axis", "group", "num_heads", "block_size", "num_outputs", "to", "is_causal", "body"))
    node.attribute.append(helper.make_attribute(name, value))
    return f"{name} = {value} for {node.op_type} {node.name}"


def _remove_attribute(model: onnx.ModelProto, rng: Random) -> str:
    nodes = [node for node in model.graph.node if node.attribute]
    if not nodes:
        return _remove_node(model, rng)
    node = rng.choice(nodes)
    attribute = rng.choice(node.attribute)
    node.attribute.remove(attribute)
    return f"{node.op_type} {node.name} without {attribute.name}"


def _rename_input(model: onnx.ModelProto, rng: Random) -> str:
    nodes = [node for node in model.graph.node if node.input]
    node = rng.choice(nodes)
    values = [name for other in model.graph.node for name in other.output]
    index = rng.randrange(len(node.input))
    old, node.input[index] = node.input[index], rng.choice(("", "absent", rng.choice(values)))
    return f"input {old} of {node.op_type} {node.name} = {node.input[index]!r}"


def _change_constant(model: onnx.ModelProto, rng: Random) -> str:
    integers = [item for item in model.graph.initializer if item.data_type == TensorProto.INT64 and item.raw_data]
    if not integers:
        return _change_shape(model, rng)
    item, value = rng.choice(integers), rng.choice(_INTEGERS)
    at = rng.randrange(len(item.raw_data) // 8) * 8
    item.raw_data = item.raw_data[:at] + value.to_bytes(8, "little", signed=True) + item.raw_data[at + 8 :]
    return f"{value} in the constant {item.name}"


def _change_shape(model: onnx.ModelProto, rng: Random) -> str:
    items = [item for item in model.graph.initializer if item.dims]
    if not items:
        return _change_port(model, rng)
    item, value = rng.choice(items), rng.choice(_INTEGERS)
    item.dims[rng.randrange(len(item.dims))] = value
    return f"an axis of {value} in the weight {item.name}"


def _change_type(model: onnx.ModelProto, rng: Random) -> str:
    if not model.graph.initializer:
        return _change_port(model, rng)
    item = rng.choice(model.graph.initializer)
    old, item.data_type = item.data_type, rng.choice((0, 1, 7, 8, 10, 16, 17, 22, 23, 99))
    return f"the dtype {old} of {item.name} = {item.data_type}"


def _change_port(model: onnx.ModelProto, rng: Random) -> str:
    port = rng.choice([*model.graph.input, *model.graph.output])
    axes, value = port.type.tensor_type.shape.dim, rng.choice(_INTEGERS)
    if axes and rng.random() < 0.7:
        rng.choice(axes).dim_value = value
        return f"an axis of {value} in {port.name}"
    old, port.name = port.name, rng.choice(("", "x", "\0", "a" * 100_000))
    return f"the port {old} has another name"


def _change_external_data(model: onnx.ModelProto, rng: Random) -> str:
    items = [item for item in model.graph.initializer if item.data_location == TensorProto.EXTERNAL]
    if not items:
        return _change_shape(model, rng)
    item = rng.choice(items)
    entry = rng.choice(item.external_data)
    entry.value = rng.choice(_LOCATIONS if entry.key == "location" else _OFFSETS)
    return f"{entry.key} of {item.name} = {entry.value[:40]!r}"


def _change_versions(model: onnx.ModelProto, rng: Random) -> str:
    value = rng.choice((*_INTEGERS, 999))
    if rng.random() < 0.5:
        model.ir_version = value
        return f"IR version {value}"
    model.opset_import[0].version = value
    return f"opset {value}"


def _add_recursion(model: onnx.ModelProto, rng: Random) -> str:
    """A function that calls itself, or another that calls it, in the place of a node with an input."""
    node = rng.choice([node for node in model.graph.node if node.input])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("local", 1)]
    names = rng.choice((["Again"], ["Again", "Other"]))
    for name, called in zip(names, names[1:] + names[:1], strict=True):
        call = helper.make_node(called, ["x"], ["y"], domain="local")
        model.functions.append(helper.make_function("local", name, ["x"], ["y"], [call], opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    del node.input[1:], node.output[1:], node.attribute[:]
    node.op_type, node.domain = "Again", "local"
    return f"{len(names)} functions that call each other for {node.name}"


def _add_allocation(model: onnx.ModelProto, rng: Random) -> str:
    """A tensor of many gigabytes that is computed and used by nothing."""
    size = helper.make_tensor("allocated_size", TensorProto.INT64, [1], [rng.choice((2**33, 2**40, 2**62))])
    model.graph.initializer.append(size)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["allocated_size"], ["allocated"], name="allocate"))
    model.graph.output.append(helper.make_tensor_value_info("allocated", TensorProto.FLOAT, [None]))
    return "a tensor of many gigabytes"


_CHANGES: tuple[Callable[[onnx.ModelProto, Random], str], ...] = (
    _remove_node,
    _repeat_node,
    _move_node,
    _rename_operator,
    _rename_domain,
    _change_attribute,
    _change_attribute,
    _add_attribute,
    _remove_attribute,
    _rename_input,
    _change_constant,
    _change_shape,
    _change_type,
    _change_port,
    _change_external_data,
    _change_external_data,
    _change_versions,
    _add_recursion,
    _add_allocation,
)
