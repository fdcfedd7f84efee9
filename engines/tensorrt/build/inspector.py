"""The layers of a built engine, from the compiler's account: operation, profile and number of bits of each layer.

The form is the inspector's JSON at DETAILED verbosity: {"Layers": [{"Name", "LayerType", "TacticName", "Metadata",
"Inputs": [{"Name", "Dimensions", "Format/Datatype"}], …}]}, as published for TensorRT 10. TensorRT for RTX 1.7.1, whose
log `account` reads, has datatype and format as two keys and a product's weights and scales in a list of their own,
"Constants"; TensorRT 11 documents the two keys. "Metadata" holds "[ONNX Layer: name]" of nodes of the graph, including
nodes that the layer does not compute but quantises, widens or transposes for.

Fused attention is `_gemm_mha_v2_myl4_4` of type "kgen". Unfused attention has a kernel with `MaxSubExpSum` in its
name. A product is of type "gemm", or of type "fusion" or "runtime_fusion" with `Fc` in its name (`__myl_FcCastAdd`) if
more is computed with it. In TensorRT 10 weights are among the inputs or are not listed at all, and outside Myelin an
input's type may be "N/A due to dynamic shapes".

The layers of all profiles are in one list. In the suffix `_myl4_4` the first number is the subgraph's, of which a
profile has one or more. The names of inputs and nodes in subgraphs of profile 2 end in " [profile 2]"; those of profile
0 have no such ending.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.tensorrt.build.account import listed_layers

Bits = Literal["fp8", "int8"]
Precision = Literal["fp32", "bf16", "fp16", "fp8", "int8"]
Dimensions = tuple[Any, ...]

_ATTENTION = re.compile(r"(?<![a-z])f?mha|flash", re.IGNORECASE)
_SOFTMAX = re.compile(r"softmax|max\w?subexp", re.IGNORECASE)
_PRODUCT = re.compile(r"gemm|matmul|matrixmultiply|(?-i:Fc(?![a-z]))", re.IGNORECASE)
_COPY = re.compile(r"reformat|noop", re.IGNORECASE)
_NO_KERNEL = re.compile(r"shape_call|signal|wait", re.IGNORECASE)
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_SUBGRAPH = re.compile(r"_myl(\d+)_\d+(?: \[profile \d+\])?$")
_PROFILE = re.compile(r"\[profile (\d+)\]")

# Of A and B, with C's between them: gemm_e4m3bf16_e4m3f32_f32, gemm_i8i8_i8i32_f32, gemm_f8_f8_f32_f16_f16.
_OPERAND = r"(?:e\dm\d|f8|[is]8|tf32|f32|bf16|f16)"
_OPERANDS = re.compile(rf"gemm_({_OPERAND}){_OPERAND}?_({_OPERAND})", re.IGNORECASE)
_OPERAND_BITS: Mapping[str, Bits] = {"e4m3": "fp8", "e5m2": "fp8", "f8": "fp8", "i8": "int8", "s8": "int8"}

_TYPES: Mapping[Precision, re.Pattern[str]] = {
    "fp32": re.compile(r"\bfloat\b|fp32|float32", re.IGNORECASE),
    "bf16": re.compile(r"bfloat16|bf16", re.IGNORECASE),
    "fp16": re.compile(r"\bhalf\b|fp16|\bfloat16", re.IGNORECASE),
    "fp8": re.compile(r"fp8|float8", re.IGNORECASE),
    "int8": re.compile(r"\bint8", re.IGNORECASE),
}
"""Words for a type in the account, the widest first."""
_BITS: tuple[Bits, ...] = ("fp8", "int8")
_NO_OPERAND = re.compile(r"\bu?int(?:32|64)\b|\bbool", re.IGNORECASE)


@dataclass(frozen=True)
class EngineLayer:
    """A layer of a built plan, from the compiler's account.

    Attributes:
        name: name of the layer in the account.
        profile: index of the profile that the layer belongs to.
        nodes: names of the graph nodes that the layer names.
        is_kernel: whether the layer runs a kernel, which layers that wait, signal or compute shapes do not.
        kind: "attention" for a kernel of fused attention, "softmax" for a kernel of a softmax alone, "product" for a
            kernel of a matrix product, "other".
        bits: 8-bit format of both operands of a product; None if an operand has more bits or the format is not known.
        precision: format of the wider operand of a product; None if it is not known.
        reads_fp8: whether all inputs are in FP8, as those of an attention in FP8 are, except inputs that are the same
            for all rows.
    """

    name: str
    profile: int
    nodes: frozenset[str]
    is_kernel: bool
    kind: Literal["attention", "softmax", "product", "other"]
    bits: Bits | None
    precision: Precision | None
    reads_fp8: bool


def engine_layers(inspected: str, nodes: Collection[str]) -> Iterator[EngineLayer]:
    """Yield the layers in the account `inspected`, except layers that only copy.

    `nodes` are the names of all nodes of the graph.

    Raises:
        QwenImageError: `inspected` is not in the expected format, or gives one subgraph to two profiles.
    """
    known = _any_of(nodes)
    layers = listed_layers(inspected)
    for layer, profile in zip(layers, layer_profiles(layers), strict=True):
        kernel = f"{layer.get('LayerType', '')} {layer.get('TacticName', '')}"
        if is_copy(layer):
            continue
        name = str(layer.get("Name", "?"))
        inputs = _tensors(layer, "Inputs")
        operands = [*inputs, *_tensors(layer, "Constants")]
        outputs = [output.dimensions for output in _tensors(layer, "Outputs")]
        bits = _bits(str(layer.get("TacticName", "")), operands, outputs)
        yield EngineLayer(
            name=name,
            profile=profile,
            nodes=frozenset((*node_names(str(layer.get("Metadata", ""))), *known.findall(name))),
            is_kernel=not _NO_KERNEL.fullmatch(str(layer.get("LayerType", ""))),
            kind=_kind(f"{known.sub('', name)} {kernel}", kernel),
            bits=bits,
            precision=bits or _widest(operands, outputs),
            reads_fp8=_all_fp8(inputs),
        )


def is_copy(layer: Mapping[str, Any]) -> bool:
    """Return whether a layer of an account only copies, which `engine_layers` leaves out."""
    return _COPY.fullmatch(str(layer.get("LayerType", ""))) is not None


def node_names(metadata: str) -> list[str]:
    """Return the names of graph nodes in `metadata`, which TensorRT stores with a layer of a network or engine."""
    return _NODE.findall(metadata)


@dataclass(frozen=True)
class _Tensor:
    """An input, constant or output of a layer: its dimensions, None if not listed, and the words on its type."""

    dimensions: Dimensions | None
    type: str

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "_Tensor":
        dimensions = value.get("Dimensions")
        said = " ".join(str(item) for key, item in value.items() if key != "Name")
        return cls(tuple(dimensions) if isinstance(dimensions, list) else None, said)

    @property
    def precision(self) -> Precision | None:
        return next((name for name, pattern in _TYPES.items() if pattern.search(self.type)), None)

    def may_be_activation(self, outputs: Collection[Dimensions | None]) -> bool:
        """Return whether the tensor can have a row for each row of an output. A weight cannot."""
        if self.dimensions is None or not outputs or None in outputs:
            return True
        return len(self.dimensions) > 1 and any(self.dimensions[-2] in output[:-1] for output in outputs if output)

    def may_be_operand(self, outputs: Collection[Dimensions | None]) -> bool:
        """Return whether the tensor can be an operand of a product with these outputs.

        A row, an index, and a tensor with the shape of an output, which is added or gates it, cannot.
        """
        alike = self.dimensions is not None and self.dimensions in outputs
        return not (alike or self.is_row() or _NO_OPERAND.search(self.type))

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


def _bits(tactic: str, operands: Collection[_Tensor], outputs: Collection[Dimensions | None]) -> Bits | None:
    """Return the 8-bit format of both operands of a product, or None if they differ, are wider or are not known.

    The tactic's name decides if it names the operands. Otherwise, a tensor with the rows of an output must be in 8
    bits, and none may be wider, except rows and tensors with the shape of an output, which is added to the product or
    gates it.
    """
    named = _OPERANDS.search(tactic)
    if named:
        first, second = (_OPERAND_BITS.get(operand.lower()) for operand in named.groups())
        return first if first == second else None
    for bits in _BITS:
        if any(item.precision == bits and item.may_be_activation(outputs) for item in operands):
            others = [item for item in operands if item.precision != bits]
            return None if any(item.may_be_operand(outputs) for item in others) else bits
    return None


def _widest(operands: Collection[_Tensor], outputs: Collection[Dimensions | None]) -> Precision | None:
    found = {item.precision for item in operands if item.may_be_operand(outputs)}
    return next((precision for precision in _TYPES if precision in found), None)


def _all_fp8(inputs: Collection[_Tensor]) -> bool:
    wide = [item for item in inputs if item.precision != "fp8" and item.may_be_operand(())]
    return not wide and any(item.precision == "fp8" for item in inputs)


def _tensors(layer: Mapping[str, Any], key: str) -> list[_Tensor]:
    return [_Tensor.of(value) for value in layer.get(key, ()) if isinstance(value, Mapping)]


def layer_profiles(layers: Collection[Mapping[str, Any]]) -> Iterator[int]:
    """Yield the index of each layer's profile.

    Raises:
        QwenImageError: a subgraph names two profiles.
    """
    subgraphs = [_SUBGRAPH.search(str(layer.get("Name", ""))) for layer in layers]
    tagged: defaultdict[str, set[int]] = defaultdict(set)
    for layer, subgraph in zip(layers, subgraphs, strict=True):
        if subgraph is not None:
            tagged[subgraph.group(1)] |= _tags(layer)
    for layer, subgraph in zip(layers, subgraphs, strict=True):
        tags = _tags(layer) if subgraph is None else tagged[subgraph.group(1)]
        if len(tags) > 1:
            raise QwenImageError(
                f"the compiler's account gives {layer.get('Name', '?')} to the profiles {sorted(tags)}, expected one; "
                "the engine's fusions cannot be checked, so it was not kept; report this with the compiler's version"
            )
        yield next(iter(tags), 0)


def _tags(layer: Mapping[str, Any]) -> set[int]:
    names = [layer.get("Name", "")]
    names += [
        value.get("Name", "")
        for key in ("Inputs", "Outputs")
        for value in layer.get(key, ())
        if isinstance(value, Mapping)
    ]
    return {int(index) for name in names for index in _PROFILE.findall(str(name))}


def _any_of(names: Collection[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the names as a whole: "Gemm_5" does not match in "Gemm_50"."""
    longest = sorted(filter(None, names), key=len, reverse=True)
    return re.compile(rf"(?:{'|'.join(map(re.escape, longest))})(?!\d)" if longest else r"(?!)")
