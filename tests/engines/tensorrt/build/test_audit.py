"""The inspector's account of an engine, counted; its JSON is made by hand in the documented form."""

import json
from dataclasses import replace
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.tensorrt.build.audit import Network, audit, check_audit
from qwen_image_engine.engines.tensorrt.build.job import ExpectedFusions

NETWORK = Network(("Attention_8", "Attention_48"), ("Gemm_5", "Gemm_50", "Gemm_6", "Gemm_7"), ("Cast_3",))
PROMISE = ExpectedFusions(fp8_products=3, int8_products=0, fp8_attention=0)


def layer(name: str, nodes: tuple[str, ...] = (), dtype: str = "BF16", kind: str = "kgen", tactic: str = "") -> Any:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [
            {"Name": "FP8 in a name", "Dimensions": [1, 4], "Format/Datatype": f"Row major linear {dtype} format"}
        ],
        "Outputs": [{"Name": "out", "Dimensions": [1, 4], "Format/Datatype": "Row major linear FP8 format"}],
        "TacticName": tactic,
        "Metadata": "\u001e".join(f"[ONNX Layer: {node}]" for node in nodes),
    }


FUSED = (
    layer("_gemm_mha_v2_myl0_4", ("Attention_8",)),
    layer("_gemm_mha_v2_myl0_9", ("Attention_48",)),
)
IN_FP8 = (
    layer("qkv", ("Gemm_5", "Gemm_50", "Gemm_6"), "FP8"),
    layer("out", ("Gemm_7",)),
    layer("quantise", ("node_QuantizeLinear",)),
    layer("dequantise", ("node_DequantizeLinear",), "FP8"),
)


def inspected(*layers: Any) -> str:
    return json.dumps({"Layers": list(layers), "I/O Tensors": []})


def test_everything_as_promised() -> None:
    found = audit(inspected(*FUSED, *IN_FP8), NETWORK)
    assert (found.fused_attentions, found.fp8_products, found.int8_products) == (2, 3, 0)
    assert found.unfused == ()
    assert found.wide == ("out",)
    check_audit("step", found, NETWORK, PROMISE)


def test_attention_that_is_not_fused_is_listed() -> None:
    softmax = layer("softmax", ("Attention_48",), tactic="__myl_MaxSubExpSum")
    found = audit(inspected(FUSED[0], softmax, *IN_FP8), NETWORK)
    with pytest.raises(QwenImageError, match=r"step: .* 1 fused attentions of 2; not fused: Attention_48\. It was not"):
        check_audit("step", found, NETWORK, PROMISE)


@pytest.mark.parametrize(
    "pieces",
    [
        [layer("Attention_48", ("Attention_48",), kind="MatrixMultiply")],
        [layer("Attention_48", kind="MatrixMultiply"), layer("__myl_MaxSubExpSum + Attention_48_softmax")],
        [layer("{ForeignNode[Attention_48...Gemm_50]}", ("Attention_48", "Gemm_50"), "FP8")],
        [layer("Attention_480 + Cast_3", ("Attention_480", "Cast_3")), layer("Attention_48 + Gemm_50")],
    ],
)
def test_the_name_of_a_node_is_no_kernel(pieces: list[Any]) -> None:
    found = audit(inspected(FUSED[0], *pieces), replace(NETWORK, nodes=("Cast_3", "Attention_480")))
    assert found.fused_attentions == 1
    assert found.unfused == ("Attention_48",)


def test_a_product_beside_attention_is_counted() -> None:
    together = layer("Attention_48 + Gemm_50", ("Attention_48", "Gemm_50"), "FP8", tactic="sm90_fmha_fp8")
    found = audit(inspected(together, layer("Gemm_5 + Attention_8", dtype="FP8")), NETWORK)
    assert (found.fused_attentions, found.fp8_products) == (1, 2)
    wide = audit(inspected(layer("Attention_48 + Gemm_50", tactic="sm90_fmha_bf16")), NETWORK)
    assert (wide.fused_attentions, wide.fp8_products, wide.wide) == (1, 0, ("Attention_48 + Gemm_50",))


def product(
    *inputs: tuple[str, list[int]], nodes: tuple[str, ...] = ("Gemm_5",), output: list[int] | None = None
) -> Any:
    """A layer of products whose inputs have these types and sizes."""
    made = layer("a product", nodes)
    made["Inputs"] = [
        {"Name": "x", "Dimensions": axes, "Format/Datatype": f"Row major linear {dtype}"} for dtype, axes in inputs
    ]
    made["Outputs"][0]["Dimensions"] = [1, 64, 32]
    return made


QKV = ("Gemm_5", "Gemm_6", "Gemm_7")


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (product(("FP8", [1, 64, 32]), ("FP8", [32, 32])), 1),
        (product(("FP8", [1, 64, 32]), ("FP8", [32, 32]), ("BF16", [1, 1, 32]), ("Float", [])), 1),
        (product(("FP8", [1, 64, 32])), 1),  # the weight is inside the layer
        (product(("FP8", [1, 64, 32]), ("FP8", [32, 32]), ("BF16", [1, 64, 32])), 1),  # added to the product
        (product(("BF16", [1, 64, 32]), ("FP8", [32, 32])), 0),
        (product(("BF16", [1, 64, 16]), ("FP8", [16, 32])), 0),
        (product(("Half", [1, 64, 32]), *[("FP8", [32, 32])] * 3, nodes=QKV), 0),
        (product(("FP8", [1, 64, 32]), *[("FP8", [32, 32])] * 3, nodes=QKV), 3),
        (product(("FP8", [1, 64, 32]), ("FP32", [32, 32])), 0),
    ],
)
def test_both_operands_are_in_8_bits(made: Any, expected: int) -> None:
    found = audit(inspected(made), NETWORK)
    assert found.fp8_products == expected
    assert found.wide == (() if expected else ("a product",))


def test_products_that_fell_back_are_listed() -> None:
    back = layer("sm90_gemm_bf16_k", ("Gemm_50",), "BF16")
    found = audit(inspected(*FUSED, layer("q", ("Gemm_5",), "FP8"), back), NETWORK)
    with pytest.raises(QwenImageError, match="1 products in FP8 of 3; in a higher precision: sm90_gemm_bf16_k"):
        check_audit("step", found, NETWORK, PROMISE)
    found = audit(inspected(*FUSED, layer("q", ("Gemm_5", "Gemm_50"), "Int8")), NETWORK)
    assert (found.fp8_products, found.int8_products) == (0, 2)
    with pytest.raises(QwenImageError, match="2 products in INT8 of 4; in a higher precision: no names given"):
        check_audit("step", found, NETWORK, ExpectedFusions(0, 4, 0))


def test_layers_without_nodes_count_as_one() -> None:
    found = audit(
        inspected(
            layer("_gemm_mha_v2_myl0_1"),
            layer("fused", tactic="_gemm_mha_v2"),
            layer("sm90_xmma_gemm_e4m3", dtype="FP8E4M3"),
            layer("copy", dtype="FP8"),
        ),
        NETWORK,
    )
    assert (found.fused_attentions, found.fp8_products) == (2, 1)
    assert found.unfused == ()


@pytest.mark.parametrize("text", ["", "[]", '{"Layers": {}}', '{"Layers": ["a name"]}', '{"Bindings": []}'])
def test_another_form_is_told(text: str) -> None:
    with pytest.raises(QwenImageError, match="another form than documented"):
        audit(text, NETWORK)


def test_attention_that_is_not_in_fp8_is_told_with_what_helps() -> None:
    promise = replace(PROMISE, fp8_attention=2)
    found = audit(inspected(layer("_gemm_mha_v2_1", ("Attention_8",), "FP8"), FUSED[1], *IN_FP8), NETWORK)
    with pytest.raises(
        QwenImageError,
        match=r"1 attentions in FP8 of 2; in a higher precision: Attention_48\. .*; export without --fp8-attention",
    ):
        check_audit("step", found, NETWORK, promise)
