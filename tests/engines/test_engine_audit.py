"""What the inspector says of an engine, counted; its JSON is made by hand in the documented form."""

import json
from typing import Any

import pytest

from qwen_image_engine.engines.build_job import Promise
from qwen_image_engine.engines.engine_audit import Network, audit, check_audit
from qwen_image_engine.engines.errors import QwenImageError

NETWORK = Network(("attention_0", "attention_1"), ("gemm_q", "gemm_k", "gemm_v", "gemm_out"))
PROMISE = Promise(fp8_products=3, int8_products=0, fp8_attention=0)


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
    layer("_gemm_mha_v2_myl0_4", ("attention_0",)),
    layer("_gemm_mha_v2_myl0_9", ("attention_1",)),
)
IN_FP8 = (
    layer("qkv", ("gemm_q", "gemm_k", "gemm_v"), "FP8"),
    layer("out", ("gemm_out",)),
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
    softmax = layer("softmax", ("attention_1",), tactic="__myl_MaxSubExpSum")
    found = audit(inspected(FUSED[0], softmax, *IN_FP8), NETWORK)
    with pytest.raises(QwenImageError, match=r"step: .* 1 fused attentions of 2; not fused: attention_1\. It was not"):
        check_audit("step", found, NETWORK, PROMISE)


def test_products_that_fell_back_are_listed() -> None:
    back = layer("sm90_gemm_bf16_k", ("gemm_k",), "BF16")
    found = audit(inspected(*FUSED, layer("q", ("gemm_q",), "FP8"), back), NETWORK)
    with pytest.raises(QwenImageError, match="1 products in FP8 of 3; in a higher precision: sm90_gemm_bf16_k"):
        check_audit("step", found, NETWORK, PROMISE)
    found = audit(inspected(*FUSED, layer("q", ("gemm_q", "gemm_k"), "Int8")), NETWORK)
    assert (found.fp8_products, found.int8_products) == (0, 2)
    with pytest.raises(QwenImageError, match="2 products in INT8 of 4; in a higher precision: no names given"):
        check_audit("step", found, NETWORK, Promise(0, 4, 0))


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
