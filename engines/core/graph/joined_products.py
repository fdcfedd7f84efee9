"""Products of the same rows that become one product where their weights are inputs of a plan, joined by rows."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass

from qwen_image_engine.engines.core.graph.external_weights import ExternalWeight
from qwen_image_engine.engines.core.graph.graph_nodes import GraphNode, graph_nodes, node_message
from qwen_image_engine.engines.core.protobuf import integer_field, message_field

JOINT = "+"
"""Text between the names of what was joined: weights, products, values."""

_GRAPH_INITIALIZER = 5
_TENSOR_DIMS, _TENSOR_DTYPE, _TENSOR_NAME, _TENSOR_RAW, _INT64 = 1, 2, 8, 9, 7
_PLAIN: Mapping[str, float] = {"alpha": 1, "beta": 1, "transA": 0}

Contents = Callable[[str], Hashable | None]
"""A function of a constant's name that returns its contents, which may be compared; None if there is no such constant
or if it has more than one element."""


@dataclass(frozen=True)
class _Product:
    """A product x W^T of rows x and a bindable weight W, which may be dequantised codes."""

    gemm: GraphNode
    codes: GraphNode | None
    weight: ExternalWeight


@dataclass(frozen=True)
class JoinedProducts:
    """Products that are to become one.

    Attributes:
        weights: weights of the products, matrices of as many columns, (rows, columns).
        products: the products as the graph has them, in the order of the weights.
        dequantisers: nodes between weights and products, one for each; none if the weights are no codes.
        concatenation: node that joins the results in the graph; None if nothing does.
    """

    weights: tuple[ExternalWeight, ...]
    products: tuple[GraphNode, ...]
    dequantisers: tuple[GraphNode, ...]
    concatenation: GraphNode | None

    @property
    def replaced(self) -> Iterator[int]:
        """Places of the nodes that the graph does not need any more."""
        yield from (node.index for node in (*self.products, *self.dequantisers))
        if self.concatenation is not None:
            yield self.concatenation.index

    @property
    def place(self) -> int:
        """Place of the first of the products, where the new nodes belong."""
        return min(node.index for node in self.products)

    def nodes(self) -> bytes:
        """Return the nodes that compute the same, as fields of a graph.

        They read the weights as one matrix, whose name is the weights' names, and the constant of `sizes`.
        """
        results = [node.outputs[0] for node in self.products]
        joined = JOINT.join(results) if self.concatenation is None else self.concatenation.outputs[0]
        name, matrix = JOINT.join(node.name for node in self.products), _joint_name(self.weights)
        written = b""
        if self.dequantisers:
            scales, codes, matrix = self.dequantisers[0].inputs[1:], matrix, f"{matrix} dequantised"
            written += node_message("DequantizeLinear", matrix, [codes, *scales], [matrix], {})
        rows = self.products[0].inputs[0]
        written += node_message("Gemm", name, [rows, matrix], [joined], {"transB": 1})
        return written + node_message("Split", f"{name} split", [joined, self._sizes], results, {"axis": 1})

    def sizes(self) -> bytes:
        """Return the constant of the rows of each weight, as a field of a graph."""
        counts = [weight.shape[0] for weight in self.weights]
        tensor = integer_field(_TENSOR_DIMS, len(counts)) + integer_field(_TENSOR_DTYPE, _INT64)
        tensor += message_field(_TENSOR_NAME, self._sizes.encode())
        tensor += message_field(_TENSOR_RAW, struct.pack(f"<{len(counts)}q", *counts))
        return message_field(_GRAPH_INITIALIZER, tensor)

    @property
    def _sizes(self) -> str:
        return f"{_joint_name(self.weights)} rows"


def joined_products(
    graph: memoryview, weights: Mapping[str, ExternalWeight], contents: Contents
) -> list[JoinedProducts]:
    """Return the products that one product should compute, where their weights are inputs of a plan.

    Two kinds pay with TensorRT for RTX 1.7.1, by its account of kernels (docs/performance.md):

    - products whose results the graph concatenates: queries and keys, whose mean of squares is a joint one. A copy of
      both is spared, too;
    - the two products of a gated MLP, SiLU(x W^T) * (x V^T), of codes with one scale. In 16 bits the second computes
      SiLU in its epilogue, and joined they would move 302 MB more in a block.

    Values with queries and keys would be copied out of the joint result, 168 MB in a block.

    Args:
        graph: bytes of the graph.
        weights: weights that can be inputs, by name.
        contents: function that compares scales.

    Raises:
        ValueError: the bytes are no graph.
    """
    nodes = [*graph_nodes(graph)]
    makers = {output: node for node in nodes for output in node.outputs}
    uses = Counter(value for node in nodes for value in node.inputs)
    found: list[JoinedProducts] = []
    taken: set[str] = set()
    for node in nodes:
        of_codes, results = False, _concatenated(node)
        if node.operator == "Mul":
            of_codes, results = True, _gated(node, makers)
        products = [item for value in results if (item := _product(value, makers, uses, weights)) is not None]
        names = {item.weight.name for item in products}
        if len(results) != len(names) or len(names) < 2 or not taken.isdisjoint(names):
            continue
        if _are_alike(products, contents) and (products[0].codes is not None or not of_codes):
            taken |= names
            codes = tuple(item.codes for item in products if item.codes is not None)
            of = tuple(item.weight for item in products)
            joins = node if node.operator == "Concat" else None
            found.append(JoinedProducts(of, tuple(item.gemm for item in products), codes, joins))
    return found


def _concatenated(node: GraphNode) -> tuple[str, ...]:
    """Return the values whose columns a node concatenates; none if it does nothing of the kind."""
    return node.inputs if node.operator == "Concat" and node.attributes.get("axis") == 1 else ()


def _gated(node: GraphNode, makers: Mapping[str, GraphNode]) -> tuple[str, ...]:
    """Return the values g and u of a node SiLU(g) * u; none if it is another."""
    for silu, up in (node.inputs, node.inputs[::-1]):
        maker = makers.get(silu)
        for gate, sigmoid in (maker.inputs, maker.inputs[::-1]) if maker and maker.operator == "Mul" else ():
            of = makers.get(sigmoid)
            if of is not None and of.operator == "Sigmoid" and of.inputs == (gate,):
                return gate, up
    return ()


def _product(
    value: str, makers: Mapping[str, GraphNode], uses: Mapping[str, int], weights: Mapping[str, ExternalWeight]
) -> _Product | None:
    """Return the product that makes a value; None if it is no product, or if its weight has other readers."""
    gemm = makers.get(value)
    if gemm is None or gemm.operator != "Gemm" or len(gemm.inputs) != 2 or gemm.attributes.get("transB") != 1:
        return None
    if any(gemm.attributes.get(name, plain) != plain for name, plain in _PLAIN.items()):
        return None
    codes, name = makers.get(gemm.inputs[1]), gemm.inputs[1]
    if codes is not None:
        if codes.operator != "DequantizeLinear" or uses[name] > 1:
            return None
        name = codes.inputs[0]
    weight = weights.get(name)
    return None if weight is None or uses[name] > 1 or len(weight.shape) != 2 else _Product(gemm, codes, weight)


def _are_alike(products: list[_Product], contents: Contents) -> bool:
    """Return whether products read the same rows, and weights that can lie one behind the other."""
    forms = {(item.gemm.inputs[0], item.weight.dtype, item.weight.shape[1]) for item in products}
    if all(item.codes is None for item in products):
        return len(forms) == 1
    scales = {_scales(item.codes, contents) for item in products}
    return len(forms) == len(scales) == 1 and None not in scales


def _scales(codes: GraphNode | None, contents: Contents) -> tuple[Hashable, ...] | None:
    """Return scale and zero point of codes; None if there are none, or several."""
    found = () if codes is None else tuple(contents(name) for name in codes.inputs[1:])
    return None if not found or None in found else found


def _joint_name(weights: tuple[ExternalWeight, ...]) -> str:
    return JOINT.join(weight.name for weight in weights)
