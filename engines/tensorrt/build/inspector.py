"""The layers of a built engine, from TensorRT's inspector: operation and number of bits of each layer.

The expected format is the published JSON of TensorRT 10 at DETAILED verbosity: {"Layers": [{"Name", "LayerType",
"TacticName", "Metadata", "Inputs": [{"Name", "Dimensions", "Format/Datatype"}], …}]}. TensorRT 11 documents format and
datatype as two keys; no JSON of 11 for such graphs has been seen. The layers of all profiles are in one list.
"Metadata" holds "[ONNX Layer: name]" of nodes of the graph, including nodes that the layer does not compute but
quantises, widens or transposes for.

In the published JSON, fused attention is `_gemm_mha_v2_myl4_4` of type "kgen". Unfused attention has a kernel with
`MaxSubExpSum` in its name. A product is of type "gemm", or of type "fusion" with `Fc` in its name (`__myl_FcCastAdd`)
if more is computed with it. Weights are among the inputs or are not listed at all. Outside Myelin an input's type may
be "N/A due to dynamic shapes".
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen_image_engine.engines.core.errors import QwenImageError

Bits = Literal["fp8", "int8"]
Dimensions = tuple[Any, ...]

_ATTENTION = re.compile(r"(?<![a-z])f?mha|flash", re.IGNORECASE)
_SOFTMAX = re.compile(r"softmax|max\w?subexp", re.IGNORECASE)
_PRODUCT = re.compile(r"gemm|matmul|matrixmultiply|(?-i:Fc(?![a-z]))", re.IGNORECASE)
_COPY = re.compile(r"reformat|noop", re.IGNORECASE)
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")

# Of A and B, with C's between them: gemm_e4m3bf16_e4m3f32_f32, gemm_i8i8_i8i32_f32, gemm_f8_f8_f32_f16_f16.
_OPERAND = r"(?:e\dm\d|f8|[is]8|tf32|f32|bf16|f16)"
_OPERANDS = re.compile(rf"gemm_({_OPERAND}){_OPERAND}?_({_OPERAND})", re.IGNORECASE)
_OPERAND_BITS: Mapping[str, Bits] = {"e4m3": "fp8", "e5m2": "fp8", "f8": "fp8", "i8": "int8", "s8": "int8"}

_TYPES: Mapping[Bits, re.Pattern[str]] = {
    "fp8": re.compile(r"fp8|float8", re.IGNORECASE),
    "int8": re.compile(r"\bint8", re.IGNORECASE),
}
_NO_OPERAND = re.compile(r"\bu?int(?:32|64)\b|\bbool", re.IGNORECASE)


@dataclass(frozen=True)
class EngineLayer:
    """A layer of a built plan, from TensorRT's engine inspector.

    Attributes:
        name: name of the layer in the inspector's JSON.
        nodes: names of the graph nodes that the layer names.
        kind: "attention" for a kernel of fused attention, "softmax" for a kernel of a softmax alone, "product" for a
            kernel of a matrix product, "other".
        bits: 8-bit format of both operands of a product; None if an operand has more bits or the format is not known.
        reads_fp8: whether any input is in FP8.
    """

    name: str
    nodes: frozenset[str]
    kind: Literal["attention", "softmax", "product", "other"]
    bits: Bits | None
    reads_fp8: bool


def engine_layers(inspected: str, nodes: Collection[str]) -> Iterator[EngineLayer]:
    """Yield the layers in the inspector's JSON `inspected`, except layers that only copy.

    `nodes` are the names of all nodes of the graph.

    Raises:
        QwenImageError: `inspected` is not in the expected format.
    """
    known = _any_of(nodes)
    for layer in _listed(inspected):
        kernel = f"{layer.get('LayerType', '')} {layer.get('TacticName', '')}"
        if _COPY.fullmatch(str(layer.get("LayerType", ""))):
            continue
        name = str(layer.get("Name", "?"))
        inputs = [_Tensor.of(value) for value in layer.get("Inputs", ()) if isinstance(value, Mapping)]
        outputs = [_Tensor.of(value) for value in layer.get("Outputs", ()) if isinstance(value, Mapping)]
        yield EngineLayer(
            name=name,
            nodes=frozenset((*node_names(str(layer.get("Metadata", ""))), *known.findall(name))),
            kind=_kind(f"{known.sub('', name)} {kernel}", kernel),
            bits=_bits(str(layer.get("TacticName", "")), inputs, [output.dimensions for output in outputs]),
            reads_fp8=any(_TYPES["fp8"].search(item.type) for item in inputs),
        )


def node_names(metadata: str) -> list[str]:
    """Return the names of graph nodes in `metadata`, which TensorRT stores with a layer of a network or engine."""
    return _NODE.findall(metadata)


@dataclass(frozen=True)
class _Tensor:
    """An input or output of a layer: its dimensions, None if they are not listed, and the words on its type."""

    dimensions: Dimensions | None
    type: str

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "_Tensor":
        dimensions = value.get("Dimensions")
        said = " ".join(str(item) for key, item in value.items() if key != "Name")
        return cls(tuple(dimensions) if isinstance(dimensions, list) else None, said)

    def may_be_activation(self, outputs: Collection[Dimensions | None]) -> bool:
        """Return whether the tensor can have a row for each row of an output. A weight cannot."""
        if self.dimensions is None or not outputs or None in outputs:
            return True
        return len(self.dimensions) > 1 and any(self.dimensions[-2] in output[:-1] for output in outputs if output)

    def is_row(self) -> bool:
        """Return whether the tensor is the same for all rows or is one number for each row: a bias, a scale, a gate."""
        if self.dimensions is None:
            return False
        return sum(axis != 1 for axis in self.dimensions) <= 1 or self.dimensions[-2] == 1


def _kind(words: str, kernel: str) -> Literal["attention", "softmax", "product", "other"]:
    """Return the kind of a layer.

    `kernel` is its type and tactic. `words` is `kernel` with the layer's name, without the names of nodes in it.
    """
    if _ATTENTION.search(words) or "attention" in kernel.lower():
        return "attention"
    if _SOFTMAX.search(words):
        return "softmax"
    return "product" if _PRODUCT.search(words) else "other"


def _bits(tactic: str, inputs: Collection[_Tensor], outputs: Collection[Dimensions | None]) -> Bits | None:
    """Return the 8-bit format of both operands of a product, or None if they differ, are wider or are not known.

    The tactic's name decides if it names the operands. Otherwise, an input with the rows of an output must be in 8
    bits, and no input may be wider, except rows and inputs with the shape of an output, which is added to the product
    or gates it.
    """
    operands = _OPERANDS.search(tactic)
    if operands:
        first, second = (_OPERAND_BITS.get(operand.lower()) for operand in operands.groups())
        return first if first == second else None
    for bits, pattern in _TYPES.items():
        if not any(pattern.search(item.type) and item.may_be_activation(outputs) for item in inputs):
            continue
        others = [item for item in inputs if not pattern.search(item.type) and not _NO_OPERAND.search(item.type)]
        added = [output for output in outputs if output is not None]
        return bits if all(item.dimensions in added or item.is_row() for item in others) else None
    return None


def _listed(inspected: str) -> list[Mapping[str, Any]]:
    try:
        layers = json.loads(inspected)["Layers"]
    except (ValueError, KeyError, TypeError):
        layers = None
    if not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
        raise QwenImageError(
            'TensorRT\'s inspector gives another form than documented, with no list of objects under "Layers"; the '
            "engine's fusions cannot be checked, so it was not kept"
        )
    return layers


def _any_of(names: Collection[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the names as a whole: "Gemm_5" does not match in "Gemm_50"."""
    longest = sorted(filter(None, names), key=len, reverse=True)
    return re.compile(rf"(?:{'|'.join(map(re.escape, longest))})(?!\d)" if longest else r"(?!)")
