"""The weights that a plan of a graph takes as inputs, and the graph that takes them so.

An input is a weight, or several that lie one behind the other: of products that become one (`joined_products`).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.engines.core.files import open_regular
from qwen_image_engine.engines.core.graph.external_weights import ExternalWeight, external_weights, tensor_name
from qwen_image_engine.engines.core.graph.graph_nodes import GRAPH_NODE
from qwen_image_engine.engines.core.graph.joined_products import JOINT, Contents, JoinedProducts, joined_products
from qwen_image_engine.engines.core.protobuf import Field, fields, integer_field, message_field, messages

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER, _GRAPH_INPUT = 5, 11
_TENSOR_DIMS, _TENSOR_NAME = 1, 8
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_TYPE_DTYPE, _TENSOR_TYPE_SHAPE = 1, 2
_SHAPE_AXIS, _AXIS_SIZE = 1, 1


@dataclass(frozen=True)
class WeightInput:
    """An input of a plan for weights of its graph.

    Attributes:
        pieces: weights that lie one behind the other in it, alike but for the size of their first axis.
        products: products of these weights, which become one; None if there is one weight.
    """

    pieces: tuple[ExternalWeight, ...]
    products: JoinedProducts | None = None

    @property
    def name(self) -> str:
        """Name of the input: the names of its weights."""
        return JOINT.join(piece.name for piece in self.pieces)

    @property
    def dtype(self) -> str:
        """Dtype of the numbers, a name of `engines.core.dtypes`."""
        return self.pieces[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all pieces together."""
        return sum(piece.shape[0] for piece in self.pieces), *self.pieces[0].shape[1:]


def weight_inputs(model: memoryview, folder: Path) -> list[WeightInput]:
    """Return the inputs of a plan for the weights of a checked graph, in the order of the graph's initializers.

    Args:
        model: bytes of the graph's file.
        folder: folder of the graph, for scales of quantisation in files.

    Raises:
        ValueError: the bytes are no ONNX model, or the place or the dtype of a weight is missing.
        OSError: a file with scales cannot be read.
    """
    weights = external_weights(model)
    bindable = {weight.name: weight for weight in weights if weight.is_bindable}
    joined: dict[str, JoinedProducts] = {}
    for graph in messages(model, _MODEL_GRAPH):
        for products in joined_products(graph, bindable, _contents(graph, weights, folder)):
            joined |= {weight.name: products for weight in products.weights}
    found: dict[str, WeightInput] = {}
    for name, weight in bindable.items():
        of = joined.get(name)
        made = WeightInput((weight,)) if of is None else WeightInput(of.weights, of)
        found.setdefault(made.name, made)
    return [*found.values()]


def with_weights_as_inputs(model: memoryview, weights: Iterable[WeightInput]) -> bytes:
    """Return the bytes of a graph that takes `weights` as inputs, behind its own inputs and in this order.

    Raises:
        ValueError: the bytes are no ONNX model.
    """
    taken = [*weights]
    names = {piece.name for weight in taken for piece in weight.pieces}
    joined = [weight.products for weight in taken if weight.products is not None]
    replaced = {index: b"" for products in joined for index in products.replaced}
    replaced |= {products.place: products.nodes() for products in joined}
    behind = [message_field(_GRAPH_INPUT, _value(weight)) for weight in taken]
    behind += [products.sizes() for products in joined]
    written = []
    for field in fields(model):
        if field.number == _MODEL_GRAPH and isinstance(field.value, slice):
            graph = b"".join([*_rewritten(model[field.value], names, replaced), *behind])
            written.append(message_field(_MODEL_GRAPH, graph))
        else:
            written.append(_copied(model, field))
    return b"".join(written)


def _rewritten(graph: memoryview, names: Collection[str], replaced: Mapping[int, bytes]) -> Iterator[bytes]:
    """Yield the fields of a graph without initializers of these names, and with other nodes in the place of some."""
    index = -1
    for field in fields(graph):
        if (
            field.number == _GRAPH_INITIALIZER
            and isinstance(field.value, slice)
            and tensor_name(graph[field.value]) in names
        ):
            continue
        index += field.number == GRAPH_NODE
        is_replaced = field.number == GRAPH_NODE and index in replaced
        yield replaced[index] if is_replaced else _copied(graph, field)


def _copied(message: memoryview, field: Field) -> bytes:
    if isinstance(field.value, slice):
        return message_field(field.number, bytes(message[field.value]))
    return integer_field(field.number, field.value)


def _value(weight: WeightInput) -> bytes:
    """Return a `ValueInfoProto`: the name, dtype and static shape of an input."""
    axes = b"".join(message_field(_SHAPE_AXIS, integer_field(_AXIS_SIZE, size)) for size in weight.shape)
    tensor = integer_field(_TENSOR_TYPE_DTYPE, DTYPES[weight.dtype].onnx) + message_field(_TENSOR_TYPE_SHAPE, axes)
    kind = message_field(_TYPE_TENSOR, tensor)
    return message_field(_VALUE_NAME, weight.name.encode()) + message_field(_VALUE_TYPE, kind)


def _contents(graph: memoryview, weights: Iterable[ExternalWeight], folder: Path) -> Contents:
    """Return the function that tells the contents of single numbers, in the graph's file or in another."""
    files = {weight.name: weight for weight in weights}
    tensors = {tensor_name(tensor): tensor for tensor in messages(graph, _GRAPH_INITIALIZER)}

    def contents(name: str) -> Hashable | None:
        weight, tensor = files.get(name), tensors.get(name)
        if weight is None:
            if tensor is None or any(field.number == _TENSOR_DIMS for field in fields(tensor)):
                return None
            return tuple(_copied(tensor, field) for field in fields(tensor) if field.number != _TENSOR_NAME)
        if weight.shape:
            return None
        with open_regular(folder / weight.location) as file:
            file.seek(weight.offset)
            return weight.dtype, file.read(weight.nbytes)

    return contents
