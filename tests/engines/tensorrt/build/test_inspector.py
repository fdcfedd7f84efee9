"""Layers of engines in the forms that TensorRT's inspector was seen to give, and what the audit counts in them.

`SEEN` are published: each has its source, with tactics shortened, and this project's names in the place of the nodes'.
`DERIVED` combine those forms with what graphs of this project would give; nobody has published JSON of an FP8 engine.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_image_engine.engines.tensorrt.build.audit import Network, audit
from qwen_image_engine.engines.tensorrt.build.inspector import engine_layers

Tensor = tuple[list[int], str]

OTHERS = ("Add_1", "Add_2", "Q_1", "DQ_2")
INT8 = "sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_by_fusion_tactic"
HALF = "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n"
BF16 = "sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n"
FP8 = "sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n"
UNKNOWN = "N/A due to dynamic shapes"


def layer(
    name: str, kind: str, inputs: list[Tensor], outputs: list[Tensor], nodes: tuple[str, ...], tactic: str = ""
) -> dict[str, Any]:
    def tensors(found: list[Tensor]) -> list[dict[str, Any]]:
        return [{"Name": "x", "Dimensions": axes, "Format/Datatype": dtype} for axes, dtype in found]

    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": tensors(inputs),
        "Outputs": tensors(outputs),
        "TacticName": tactic,
        "StreamId": 0,
        "Metadata": "\u001f".join(f"[ONNX Layer: {node}]" for node in nodes),
    }


# github.com/FlankKaicoder/jetson-qwen-inference-lab, TensorRT 10.3 on Orin: engine_summary_w8a8.json
INT8_PRODUCT = [
    layer("dummy_shape_call__mye746_0_myl0_0", "shape_call", [], [], ()),
    layer("__myl_MulMinMaxRouCas_myl0_1", "kgen", [([1, 8, 1024], "Half")], [([1, 8, 1024], "Int8")], ("Q_1",)),
    layer(
        "__myl_FcCas_myl0_2",
        "fusion",
        [([1, 8, 1024], "Int8"), ([1, 1024, 2048], "Int8")],
        [([1, 8, 2048], "Half")],
        ("Gemm_5", "DQ_2", "Q_1", "DQ_3"),
        INT8,
    ),
]
# the same: engine_summary_w8.json
WEIGHT_ONLY = [
    layer(
        "Gemm_5_myl0_1",
        "gemm",
        [([1, 8, 1024], "Half"), ([1, 1024, 2048], "Half"), ([1], "Float"), ([1], "Float")],
        [([1, 8, 2048], "Half")],
        ("Gemm_5",),
        "ampere_h16816gemm_128x64_ldg8_stages_32x6_nn_v1",
    )
]
# the same: mixed_decode_engine_inspector.json
RESIDUAL_ADDED = [
    layer(
        "__myl_FcCasAdd_myl0_20",
        "fusion",
        [([1, 1, 1024], "Half"), ([1, 1, 2048], "Int8"), ([1, 2048, 1024], "Int8")],
        [([1, 1, 1024], "Half")],
        ("Gemm_5", "DQ_1", "Q_1", "Add_2"),
        INT8,
    )
]
# the same: engine_layer_information.jsonl of Qwen3-VL; its MatMul, Softmax and MatMul are one Attention here
FUSED = [
    layer(
        "__myl_TraSliSli_myl4_3",
        "kgen",
        [([784, 3, 16, 64], "Half")],
        [([16, 784, 64], "Half"), ([16, 64, 784], "Half")],
        ("Attention_8",),
    ),
    layer(
        "_gemm_mha_v2_myl4_4",
        "kgen",
        [([16, 784, 64], "Half"), ([16, 64, 784], "Half"), ([16, 784, 64], "Half")],
        [([16, 784, 64], "Half")],
        ("Attention_8",),
        "_gemm_mha_v2_0xbab5",
    ),
]
# the same: mixed_decode_engine_inspector.json
NOT_FUSED = [
    layer(
        "Attention_8_myl0_15",
        "gemm",
        [([16, 1, 128], "Half"), ([16, 128, -1], "Half")],
        [([16, 1, -1], "Half")],
        ("Attention_8",),
        HALF,
    ),
    layer(
        "__myl_MulMaxSubExpSumDivMul_myl0_16",
        "kgen",
        [([1, 16, 1, -1], "Half")],
        [([1, 16, 1, -1], "Half")],
        ("Attention_8",),
    ),
    layer(
        "Attention_8_myl0_18",
        "gemm",
        [([16, 1, -1], "Half"), ([16, -1, 128], "Half")],
        [([16, 1, 128], "Half")],
        ("Attention_8",),
        HALF,
    ),
]
# github.com/NVIDIA/TensorRT/issues/4397, TensorRT 10.10 on A100
MERGED = [
    layer(
        "Gemm_5+Gemm_6+Gemm_7_myl0_16",
        "gemm",
        [([1, 40, 256], "Half")],
        [([3, 40, 256], "Half")],
        ("Gemm_5", "Add_1", "Gemm_6", "Add_2", "Gemm_7"),
        "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n",
    )
]

SEEN = {
    "int8": (INT8_PRODUCT, (0, 0, 1), ()),
    "weights alone in 8 bits": (WEIGHT_ONLY, (0, 0, 0), ("Gemm_5",)),
    "a residual is added": (RESIDUAL_ADDED, (0, 0, 1), ()),
    "fused": (FUSED, (1, 0, 0), ()),
    "not fused": (NOT_FUSED, (0, 0, 0), ()),
    "merged": (MERGED, (0, 0, 0), ("Gemm_5", "Gemm_6", "Gemm_7")),
}


def product(
    *inputs: Tensor,
    name: str = "Gemm_5_myl0_4",
    nodes: tuple[str, ...] = ("Gemm_5",),
    tactic: str = "",
    kind: str = "gemm",
    output: Tensor = ([1, -1, 3072], "BFloat16"),
) -> dict[str, Any]:
    return layer(name, kind, [*inputs], [output], nodes, tactic)


ROWS, WEIGHT = ([1, -1, 3072], "FP8"), ([3072, 3072], "FP8")
WIDE_ROWS, WIDE_WEIGHT = ([1, -1, 3072], "BFloat16"), ([3072, 3072], "BFloat16")
ADDED = product(WIDE_ROWS, ([1, -1, 12288], "FP8"), name="__myl_FcCastAdd_myl0_2", kind="fusion")

DERIVED = {
    "a residual is added, weights not listed": ([ADDED], (0, 1, 0), ()),
    "merged, with one weight and the biases": (
        [
            product(
                ([1, 40, 256], "FP8"),
                ([3, 256, 256], "FP8"),
                ([3, 1, 256], "BFloat16"),
                nodes=("Gemm_5", "Gemm_6", "Gemm_7"),
                output=([3, 40, 256], "BFloat16"),
            )
        ],
        (0, 3, 0),
        (),
    ),
    "the gate of a batch": (
        [product(([-1, 1, 3072], "BFloat16"), ([-1, -1, 3072], "FP8"), output=([-1, -1, 3072], "BFloat16"))],
        (0, 1, 0),
        (),
    ),
    "a weight widened by a kernel of its own": (
        [
            layer("__myl_CastMulTran", "kgen", [WEIGHT], [WIDE_WEIGHT], ("DQ_2", "Gemm_5")),
            product(WIDE_ROWS, WIDE_WEIGHT, tactic=BF16),
        ],
        (0, 0, 0),
        ("Gemm_5",),
    ),
    "8 bits in one kernel, 16 in the next": (
        [
            product(ROWS, WEIGHT, tactic=FP8),
            product(WIDE_ROWS, WIDE_WEIGHT, tactic=BF16, name="Gemm_5_myl1_4"),
        ],
        (0, 0, 0),
        ("Gemm_5",),
    ),
    "fused in one subgraph alone": ([*FUSED, *NOT_FUSED], (0, 0, 0), ()),
    "one row, which a bias would be": (
        [
            layer(
                "__myl_CastMulSum",
                "kgen",
                [([1, 1, 1024], "BFloat16"), ([1, 1024, 3072], "FP8")],
                [([1, 1, 3072], "BFloat16")],
                ("Gemm_5",),
            )
        ],
        (0, 0, 0),
        ("Gemm_5",),
    ),
    "a quantising kernel that names the product": (
        [
            layer("__myl_MulMinMaxCast", "kgen", [WIDE_ROWS], [ROWS], ("Q_1", "Gemm_5")),
            product(ROWS, WEIGHT, tactic=FP8),
        ],
        (0, 1, 0),
        (),
    ),
    "unknown types, the tactic tells": (
        [
            layer("Reformatting CopyNode to Gemm_5", "Reformat", [([-1], UNKNOWN)], [([-1], UNKNOWN)], ()),
            product(([-1, 128], UNKNOWN), tactic="sm80_xmma_gemm_i8i8_i8i32_f32_tn_n", output=([-1, 128], UNKNOWN)),
        ],
        (0, 0, 1),
        (),
    ),
    "rows of an unknown type": (
        [product(([-1, 3072], UNKNOWN), WEIGHT, output=([-1, 3072], UNKNOWN))],
        (0, 0, 0),
        ("Gemm_5",),
    ),
    "tactics of other families": (
        [
            product(ROWS, WEIGHT, tactic="cutlass3x_sm100_tensorop_s256x256x32gemm_f8_f8_f32_f16_f16"),
            product(ROWS, WEIGHT, tactic="sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n", nodes=("Gemm_6",)),
        ],
        (0, 2, 0),
        (),
    ),
    "a name that speaks of attention": (
        [
            layer("(Unnamed Layer* 12) [AttentionInput]_myl0_15", "gemm", [], [], ("Attention_8",), BF16),
            layer("__myl_MaxrSubExpSumDiv_myl0_16", "kgen", [], [], ("Attention_8",)),
        ],
        (0, 0, 0),
        (),
    ),
}


@pytest.mark.parametrize("name", [*SEEN, *DERIVED])
def test_what_is_counted(name: str) -> None:
    layers, expected, wide = {**SEEN, **DERIVED}[name]
    names = {node for item in layers for node in ("Attention_8", "Gemm_5", "Gemm_6", "Gemm_7") if node in str(item)}
    network = Network(
        [node for node in names if node.startswith("A")], [node for node in names if node.startswith("G")], OTHERS
    )
    (found,) = audit(json.dumps({"Layers": layers, "I/O Tensors": []}), network, 1)
    assert (found.fused_attentions, found.fp8_products, found.int8_products) == expected
    assert found.wide == wide
    assert found.unfused == (("Attention_8",) if network.attentions and not expected[0] else ())


def test_a_weight_of_no_stated_size_is_no_activation() -> None:
    made = product(WIDE_ROWS, WEIGHT)
    for value in (*made["Inputs"], *made["Outputs"]):
        del value["Dimensions"]
    (found,) = engine_layers(json.dumps({"Layers": [made]}), ["Gemm_5"])
    assert found.bits is None


def test_format_and_type_apart_as_in_11() -> None:
    made = product(ROWS, WEIGHT)
    for value in made["Inputs"]:
        value |= {"DataType": value.pop("Format/Datatype"), "Format": "N/A", "Location": "Device"}
    (found,) = engine_layers(json.dumps({"Layers": [made]}), ["Gemm_5"])
    assert (found.kind, found.bits, found.reads_fp8) == ("product", "fp8", True)


def test_attention_in_8_bits() -> None:
    names = ("Attention_8", "Attention_9")
    network = Network(names, ())
    layers = [
        layer("_gemm_mha_v2_myl0_1", "kgen", [([16, 784, 64], "FP8")] * 3, [], names[:1]),
        layer("_gemm_mha_v2_myl0_2", "kgen", [([16, 784, 64], "BFloat16")] * 3, [], names[1:]),
    ]
    (found,) = audit(json.dumps({"Layers": layers}), network, 1)
    assert (found.fused_attentions, found.fp8_attentions, found.wide_attentions) == (2, 1, names[1:])
