"""The inspector's account of an engine, counted; its JSON is made by hand in the documented form."""

import json
from dataclasses import replace
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.tensorrt.build.account import file_text
from qwen_image_engine.engines.tensorrt.build.audit import Audit, Network, audit, check_audit, check_parsed
from qwen_image_engine.engines.tensorrt.build.inspector import node_names
from qwen_image_engine.engines.tensorrt.build.job import ExpectedFusions
from qwen_image_engine.engines.tensorrt.build.summary import summary

NETWORK = Network(("Attention_8", "Attention_48"), ("Gemm_5", "Gemm_50", "Gemm_6", "Gemm_7"), ("Cast_3",))
PROMISE = ExpectedFusions(3, 0, 0, ("Attention_8", "Attention_48"))


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


def counted(text: str, network: Network = NETWORK) -> Audit:
    """The counts of an engine with one profile."""
    (found,) = audit(text, network, 1)
    return found


def check(found: Audit, promise: ExpectedFusions = PROMISE, network: Network = NETWORK) -> None:
    check_audit("step", {"512x512": found}, network, promise)


def test_everything_as_promised() -> None:
    found = counted(inspected(*FUSED, *IN_FP8))
    assert (found.fused_attentions, found.fp8_products, found.int8_products) == (2, 3, 0)
    assert found.unfused == ()
    assert found.wide == ("Gemm_7",)
    check(found)


def test_attention_that_is_not_fused_is_listed() -> None:
    softmax = layer("softmax", ("Attention_48",), tactic="__myl_MaxSubExpSum")
    found = counted(inspected(FUSED[0], softmax, *IN_FP8))
    with pytest.raises(QwenImageError, match=r"step: .* 1 fused attentions of 2; not fused: Attention_48\. It was not"):
        check(found)


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
    found = counted(inspected(FUSED[0], *pieces), replace(NETWORK, nodes=("Cast_3", "Attention_480")))
    assert found.fused_attentions == 1
    assert found.unfused == ("Attention_48",)


def test_a_product_beside_attention_is_counted() -> None:
    together = layer("Attention_48 + Gemm_50", ("Attention_48", "Gemm_50"), "FP8", tactic="sm90_fmha_fp8")
    found = counted(inspected(together, layer("Gemm_5 + Attention_8", dtype="FP8")))
    assert (found.fused_attentions, found.fp8_products) == (1, 2)
    wide = counted(inspected(layer("Attention_48 + Gemm_50", tactic="sm90_fmha_bf16")))
    assert (wide.fused_attentions, wide.fp8_products, wide.wide) == (1, 0, ("Gemm_50",))


def test_a_joined_product_counts_as_those_that_it_stands_for() -> None:
    network = replace(NETWORK, products=("Gemm_5+Gemm_50", "Gemm_6", "Gemm_7"))
    layers = (layer("qk", ("Gemm_5+Gemm_50",), "FP8"), layer("Gemm_6_myl0_1", dtype="FP8"), layer("out", ("Gemm_7",)))
    assert counted(inspected(*FUSED, *layers), network).fp8_products == 3
    named = layer("Gemm_5+Gemm_50_myl0_3", dtype="FP8", kind="gemm")
    assert counted(inspected(*FUSED, named), network).fp8_products == 2
    text = file_text(inspected(*FUSED, *layers), network.names(("any",)))
    assert summary(text)[0].products == {"fp8": 3, "unknown": 1}


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
    found = counted(inspected(made))
    assert found.fp8_products == expected
    assert found.wide == (() if expected else tuple(node_names(made["Metadata"])))


def test_products_that_fell_back_are_listed() -> None:
    back = layer("sm90_gemm_bf16_k", ("Gemm_50",), "BF16")
    found = counted(inspected(*FUSED, layer("q", ("Gemm_5",), "FP8"), back))
    with pytest.raises(QwenImageError, match="1 products in FP8 of 3; in a higher precision: Gemm_50"):
        check(found)
    found = counted(inspected(*FUSED, layer("q", ("Gemm_5", "Gemm_50"), "Int8")))
    assert (found.fp8_products, found.int8_products) == (0, 2)
    with pytest.raises(QwenImageError, match="2 products in INT8 of 4; in a higher precision: no names given"):
        check(found, replace(PROMISE, fp8_products=0, int8_products=4))


def test_layers_without_nodes_count_as_one() -> None:
    found = counted(
        inspected(
            layer("_gemm_mha_v2_myl0_1"),
            layer("fused", tactic="_gemm_mha_v2"),
            layer("sm90_xmma_gemm_e4m3", dtype="FP8E4M3"),
            layer("copy", dtype="FP8"),
        )
    )
    assert (found.fused_attentions, found.fp8_products) == (2, 1)
    assert found.unfused == ()


@pytest.mark.parametrize("text", ["", "[]", '{"Layers": {}}', '{"Layers": ["a name"]}', '{"Bindings": []}'])
def test_another_form_is_told(text: str) -> None:
    with pytest.raises(QwenImageError, match="another form than known"):
        counted(text)


def test_attention_that_is_not_in_fp8_is_told_with_what_helps() -> None:
    promise = replace(PROMISE, fp8_attention=2)
    found = counted(inspected(layer("_gemm_mha_v2_1", ("Attention_8",), "FP8"), FUSED[1], *IN_FP8))
    with pytest.raises(
        QwenImageError,
        match=r"1 attentions in FP8 of 2; in a higher precision: Attention_48\. .*; export without --fp8-attention",
    ):
        check(found, promise)


def test_every_profile_must_keep_the_promise() -> None:
    def of(profile: int, *layers: Any) -> list[Any]:
        tag = f" [profile {profile}]" if profile else ""
        return [{**item, "Name": f"{item['Name']}{tag}_myl{profile}_{index}"} for index, item in enumerate(layers)]

    apart = layer("softmax", ("Attention_48",), tactic="__myl_MaxSubExpSum")
    text = inspected(*of(0, *FUSED, *IN_FP8), *of(1, FUSED[0], apart, *IN_FP8))
    found = dict(zip(("512x512", "1024x1024"), audit(text, NETWORK, 2), strict=True))
    assert [item.fused_attentions for item in found.values()] == [2, 1]
    with pytest.raises(
        QwenImageError, match=r"profile 1024x1024: 1 fused attentions of 2; not fused: Attention_48\. It"
    ):
        check_audit("step", found, NETWORK, PROMISE)
    for count in (1, 3):
        with pytest.raises(QwenImageError, match=rf"layers of the profiles \[0, 1\], expected all of {count}"):
            audit(text, NETWORK, count)


def test_a_subgraph_of_two_profiles_is_told() -> None:
    layers = [layer(f"Gemm_5 [profile {profile}]_myl1_{profile}", ("Gemm_5",)) for profile in (1, 2)]
    with pytest.raises(QwenImageError, match=r"gives Gemm_5 \[profile 1\]_myl1_1 to the profiles \[1, 2\]"):
        audit(inspected(*layers), NETWORK, 3)


def test_what_the_parser_made_is_checked_before_the_build() -> None:
    check_parsed("step", NETWORK, PROMISE)
    with pytest.raises(
        QwenImageError, match=r"made 1 attention layers without a mask of the graph's 2 .* none of: Attention_48\. Un"
    ):
        check_parsed("step", replace(NETWORK, attentions=("Attention_8",)), PROMISE)
    with pytest.raises(QwenImageError, match="step: 0 attentions read FP8 in the parsed graph, expected at least 2"):
        check_parsed("step", NETWORK, replace(PROMISE, fp8_attention=2))


def test_products_that_must_be_in_8_bits_are_named_before_others() -> None:
    network = replace(NETWORK, from_codes=("Gemm_50",))
    found = counted(inspected(*FUSED, layer("q", ("Gemm_5", "Gemm_6"), "FP8"), layer("a", ("Gemm_50", "Gemm_7"))))
    with pytest.raises(QwenImageError, match=r"2 products in FP8 of 3; in a higher precision: Gemm_50\. It"):
        check(found, network=network)
