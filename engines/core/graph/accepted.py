"""The table of accepted operators: everything that the graphs of this project's exports hold.

An engine is not written for hostile graphs: some end the process. So the attributes of a node and the sizes of a graph
have ranges, which no export leaves. `tests/export/test_accepted_operators.py` compares the table with the exports of
every target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

IR_VERSIONS = frozenset({11})
"""Accepted versions of ONNX's file format."""

OPSETS: Mapping[str, frozenset[int]] = {"": frozenset({23}), "com.microsoft": frozenset({1})}
"""Accepted versions of the operators by domain."""

MAX_GRAPH_BYTES = 64 << 20
"""Largest size of a graph's file without its weights [bytes]. The released step takes 1 MB."""

MAX_AXIS = 1 << 24
"""Largest size of an axis, and largest magnitude of an integer in a graph but for the two ends of int64."""

MAX_RANK = 8
"""Largest number of axes of a tensor, and of integers in an attribute."""

DTYPES = frozenset({"float32", "bfloat16", "float16", "float8_e4m3fn", "int64", "int8", "uint8", "bool"})
"""Accepted dtypes by torch's name."""

Accepted = range | tuple[float, float] | frozenset[bytes] | str
"""Accepted values of an attribute: integers, each of a list of integers, floats from a least to a most, or texts.

"tensor" stands for a tensor of one value.
"""


@dataclass(frozen=True)
class Operator:
    """A row of the table of operators.

    Attributes:
        name: name of the operator.
        inputs: least and most inputs.
        outputs: least and most outputs.
        attributes: accepted values by attribute. Every attribute may be absent.
        domain: domain of the operator, "" for ONNX's own.
    """

    name: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    attributes: Mapping[str, Accepted]
    domain: str = ""


def _operator(
    name: str, least: int, most: int | None = None, outputs: tuple[int, int] = (1, 1), /, **attributes: Accepted
) -> Operator:
    return Operator(name, (least, least if most is None else most), outputs, attributes)


def _microsoft(name: str, inputs: int, /, **attributes: Accepted) -> Operator:
    return Operator(name, (inputs, inputs), (1, 1), attributes, "com.microsoft")


def _texts(*words: bytes) -> frozenset[bytes]:
    return frozenset(words)


_FLAG = range(2)
_AXIS = range(-MAX_RANK, MAX_RANK)
_HEADS = range(1, 257)
_ONE = (1.0, 1.0)
_EPSILON = (1e-8, 1e-3)
_NORM: Mapping[str, Accepted] = {"axis": range(-1, 0), "epsilon": _EPSILON, "stash_type": range(1, 2)}
_SUM: Mapping[str, Accepted] = {"keepdims": _FLAG, "noop_with_empty_axes": range(1)}

OPERATORS: Mapping[tuple[str, str], Operator] = {
    (row.domain, row.name): row
    for row in (
        _operator("Abs", 1),
        _operator("Add", 2),
        _operator(
            "Attention",
            3,
            4,
            is_causal=_FLAG,
            kv_num_heads=_HEADS,
            q_num_heads=_HEADS,
            qk_matmul_output_mode=range(1),
            scale=(1e-3, 1.0),
            softcap=(0.0, 0.0),
        ),
        _operator("Cast", 1, to=range(1, 18)),
        _operator("CastLike", 2),
        _operator("Clip", 2, 3),
        _operator("Concat", 1, 16, axis=_AXIS),
        _operator("ConstantOfShape", 1, value="tensor"),
        _operator(
            "Conv",
            2,
            3,
            auto_pad=_texts(b"NOTSET"),
            dilations=range(1, 2),
            group=range(1, 2),
            kernel_shape=range(1, 33),
            pads=range(17),
            strides=range(1, 33),
        ),
        _operator("DepthToSpace", 1, blocksize=range(2, 3), mode=_texts(b"CRD")),
        _operator("DequantizeLinear", 2, 3, axis=_AXIS),
        _operator("Div", 2),
        _operator("Expand", 2),
        _operator("Gather", 2, axis=_AXIS),
        _operator("Gelu", 1, approximate=_texts(b"none", b"tanh")),
        _operator("Gemm", 2, 3, alpha=_ONE, beta=_ONE, transA=range(1), transB=_FLAG),
        _operator("LayerNormalization", 2, 3, **_NORM),
        _operator("LessOrEqual", 2),
        _operator("MatMul", 2),
        _operator("Max", 2),
        _operator("Min", 2),
        _operator("Mul", 2),
        _operator("Pad", 2, 4, mode=_texts(b"constant")),
        _operator("QuantizeLinear", 2, 3),
        _operator("RMSNormalization", 2, **_NORM),
        _operator("Range", 3),
        _operator("Reciprocal", 1),
        _operator("ReduceMax", 2, keepdims=_FLAG),
        _operator("ReduceMean", 2, **_SUM),
        _operator("ReduceSum", 2, **_SUM),
        _operator("ReduceSumSquare", 2, **_SUM),
        _operator("Reshape", 2, allowzero=_FLAG),
        _operator(
            "Resize",
            3,
            antialias=range(1),
            coordinate_transformation_mode=_texts(b"asymmetric"),
            cubic_coeff_a=(-0.75, -0.75),
            exclude_outside=range(1),
            extrapolation_value=(0.0, 0.0),
            keep_aspect_ratio_policy=_texts(b"stretch"),
            mode=_texts(b"nearest"),
            nearest_mode=_texts(b"floor"),
        ),
        _operator("RotaryEmbedding", 3, interleaved=_FLAG, num_heads=_HEADS),
        _operator("Shape", 1, start=_AXIS, end=_AXIS),
        _operator("Sigmoid", 1),
        _operator("Slice", 4, 5),
        _operator("Softmax", 1, axis=range(-1, 0)),
        _operator("Split", 1, 2, (2, 8), axis=_AXIS, num_outputs=range(2, 9)),
        _operator("Sqrt", 1),
        _operator("Squeeze", 1, 2),
        _operator("Sub", 2),
        _operator("Tanh", 1),
        _operator("Transpose", 1, perm=range(MAX_RANK)),
        _operator("Trilu", 1, upper=range(1)),
        _operator("Where", 3),
        _microsoft("GemmFloat8", 5, dtype=range(1, 18), transB=range(1, 2)),
        _microsoft("MultiHeadAttention", 3, num_heads=_HEADS, unidirectional=range(1, 2)),
    )
}
"""Rows by domain and name."""

OF_EARLIER_EXPORTS = frozenset({("", "ConstantOfShape"), ("", "Trilu"), ("", "Where")})
"""Rows that no export needs any more: the mask of `prefix_image` in bundles of `--fp8-attention` before its attention
there became bf16's."""
