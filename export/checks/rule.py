"""Rules for exported graphs, the manifest's values that graphs are checked against, and findings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract import CODES
from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.export.targets import TARGETS
from qwen_image_engine.runtime.bundle.manifest import Manifest

Finding = tuple[str, str]
"""Name of a node or value, and a text of the fault found there."""


@dataclass(frozen=True)
class Expected:
    """The manifest's values for a component's graph.

    Attributes:
        blocks: number of blocks of the transformer.
        dtype: dtype of operands that are not quantised, and of keys and values.
        quantised: names of the linears in 8 bits.
        fp8_attention: number of blocks whose attention is FP8.
        codes: names of the inputs and outputs that hold keys and values in FP8.
    """

    blocks: int
    dtype: ir.DataType
    quantised: Collection[str]
    fp8_attention: int
    codes: Collection[str] = ()

    @classmethod
    def of(cls, manifest: Manifest, component: str) -> Expected:
        """Return the manifest's values for a component of a bundle."""
        entry = manifest.components[component]
        dtype = TARGETS[manifest.target, manifest.precision].dtype_of(COMPONENTS[component].network)
        return cls(
            manifest.dims.layers,
            ir.DataType(DTYPES[dtype].onnx),
            tuple(entry.quantised_layers),
            len(entry.fp8_attention),
            tuple(spec.name for spec in (*entry.contract.inputs, *entry.contract.outputs) if spec.dtype == CODES),
        )


@dataclass(frozen=True)
class Rule:
    """A rule for graphs: the expected state in words, and a function that finds the violations."""

    expected: str
    findings: Callable[[ir.Model, Expected], Iterator[Finding]]


def operators(model: ir.Model, *names: str) -> Iterator[ir.Node]:
    """Return the nodes of these operators, in the order of the graph."""
    return (node for node in model.graph if node.op_type in names)


def rank(value: ir.Value | None) -> int | None:
    """Return the number of a value's axes; None if there is no value or the graph does not record the shape."""
    return len(value.shape) if value is not None and value.shape is not None else None


def node_name(node: ir.Node) -> str:
    """Return a node's name for a person: operator and output, with the first weight that the node reads."""
    weights = [value.name for value in node.inputs if value is not None and value.is_initializer() and value.name]
    output = node.outputs[0].name if node.outputs else node.name
    return f"{node.op_type} {output}" + (f" ({weights[0]})" if weights else "")
