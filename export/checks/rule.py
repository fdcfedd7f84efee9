"""A rule that an exported graph keeps, what it is held against, and a place where it is broken."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.export.targets import TARGETS
from qwen_image_engine.runtime.bundle.manifest import Manifest

Finding = tuple[str, str]
"""The node or value, and what was found there."""


@dataclass(frozen=True)
class Expected:
    """What the manifest says of a component's graph.

    Attributes:
        blocks: of the transformer.
        dtype: of operands that are not quantised, and of keys and values.
        quantised: linears in 8 bits.
        fp8_attention: blocks whose attention is FP8.
    """

    blocks: int
    dtype: ir.DataType
    quantised: Collection[str]
    fp8_attention: int

    @classmethod
    def of(cls, manifest: Manifest, component: str) -> Expected:
        """That of a component of a bundle."""
        entry = manifest.components[component]
        dtype = TARGETS[manifest.target, manifest.precision].dtype_of(COMPONENTS[component].network)
        return cls(
            manifest.dims.layers,
            ir.DataType(DTYPES[dtype].onnx),
            tuple(entry.quantised_layers),
            len(entry.fp8_attention),
        )


@dataclass(frozen=True)
class Rule:
    """What is expected, and how the places are found where it is otherwise."""

    expected: str
    findings: Callable[[ir.Model, Expected], Iterator[Finding]]


def operators(model: ir.Model, *names: str) -> Iterator[ir.Node]:
    """The nodes of these operators, in the order of the graph."""
    return (node for node in model.graph if node.op_type in names)


def rank(value: ir.Value | None) -> int | None:
    """The number of a value's axes, None where it is not there or the graph does not say."""
    return len(value.shape) if value is not None and value.shape is not None else None


def node_name(node: ir.Node) -> str:
    """Of the first weight that a node reads, or of what it gives."""
    weights = [value.name for value in node.inputs if value is not None and value.is_initializer() and value.name]
    output = node.outputs[0].name if node.outputs else node.name
    return f"{node.op_type} {output}" + (f" ({weights[0]})" if weights else "")
