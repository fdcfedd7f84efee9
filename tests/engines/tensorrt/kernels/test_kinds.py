"""Kinds of kernels, by the words that the compiler was seen to use and by words that it was not."""

from __future__ import annotations

import json

import pytest

from qwen_image_engine.engines.tensorrt.kernels.kinds import KINDS, Classifier
from qwen_image_engine.engines.tensorrt.kernels.layer import Layer, read_layers
from tests.engines.tensorrt.kernels.test_sizes import layer, tensor

BF16, FP8 = tensor("x", [1, -1, 8]), tensor("y", [1, -1, 8], "FP8")
SEEN = {
    ("_gemm_mha_v2_0xdd", "Attention_1"): "attention",
    ("__myl_MaxrSubExpSumDiv_0x1", "Softmax_1"): "attention",
    ("__myl_FcMulAdd_0x1", "Gemm_1"): "product",
    ("__myl_FcSiluMul_0x1", "Gemm_1"): "product",
    ("__myl_AddSqrtDivMulMulTranSlicSlicMulMulMulMulSubAddReshConcCast_0x1", "RotaryEmbedding_1"): "rope",
    ("__myl_SlicSlicMulMulMulMulSubAddConc_0x1", "node_7"): "rope",
    ("__myl_CastMeanSubMulMeanAddSqrtDivMulMulAddCastMul_0x1", "LayerNormalization_1"): "norm",
    ("__myl_ReshCastMulMean_0x1", "node_7"): "norm",
    ("__myl_SiluMul_0x1", "Mul_1"): "other",
    ("__myl_SlicTanh_0x1", "Tanh_1"): "other",
    ("__myl_MoveReshMulMinMaxRounCastTran_0x1", "QuantizeLinear_1"): "quantise",
    ("__myl_Dyna_0x1", "node_7"): "quantise",
    ("__myl_Cast_0x1", "Cast_1"): "cast",
    ("__myl_CastResh_0x1", "Cast_1"): "cast",
    ("__myl_MoveReshTranResh_0x1", "Attention_1"): "copy",
    ("__myl_ReshConcTranReshMove_0x1", "Attention_1"): "copy",
    ("__myl_Frobnicate_0x1", "node_7"): "other",
    ("something_else", "node_7"): "other",
    ("something_else", ""): "other",
    ("kernel_17", "Transpose_1"): "copy",
    ("kernel_17", "RMSNormalization_1"): "norm",
}


def kind(tactic: str, node: str, output: dict[str, object] = BF16) -> str:
    names = {"Profiles": ["a"], "Attentions": ["Attention_1"], "Products": ["Gemm_1"], "FromCodes": []}
    found, (only,) = read_layers(json.dumps({**names, "Layers": [layer(tactic, [BF16], [output], node)]}))
    return Classifier(found, [only]).kind(only, ())


@pytest.mark.parametrize(("tactic", "node"), SEEN)
def test_kinds(tactic: str, node: str) -> None:
    assert kind(tactic, node) == SEEN[tactic, node]


def test_the_kinds_are_all_met() -> None:
    assert {*SEEN.values()} == {*KINDS}


def test_a_kernel_that_narrows_to_8_bits_quantises() -> None:
    assert kind("__myl_MoveReshMulCastTran_0x1", "Transpose_1", FP8) == "quantise"
    assert kind("__myl_SiluMulMulCast_0x1", "Sigmoid_1", FP8) == "other"


def layers(*found: dict[str, object]) -> tuple[Classifier, tuple[Layer, ...]]:
    names = {"Profiles": ["a"], "Attentions": ["Attention_1"], "Products": ["Gemm_1"], "FromCodes": []}
    text, read = read_layers(json.dumps({**names, "Layers": [*found]}))
    return Classifier(text, read), read


def test_a_generated_kernel_that_alone_names_a_product_computes_it() -> None:
    row = layer("__myl_CastReshMulSum_0x1", [tensor("t", [1, 8])], [tensor("h", [1, 16])], "Gemm_1")
    weight = [*read_layers(json.dumps({"Profiles": [], "Attentions": [], "Products": [], "FromCodes": [], "Layers": [
        layer("a", [tensor("w", [8, 16])], [])]}))[1][0].inputs]  # fmt: skip
    classifier, (only,) = layers(row)
    assert classifier.kind(only, weight) == "product"
    assert classifier.kind(only, ()) == "other"
    product = layer("gemm", [BF16], [BF16], "Gemm_1")
    classifier, (first, _) = layers(row, product)
    assert classifier.kind(first, weight) == "other"


def test_what_only_reformats_copies() -> None:
    made = layer("a", [BF16], [BF16])
    made["LayerType"] = "Reformat"
    classifier, (only,) = layers(made)
    assert classifier.kind(only, ()) == "copy"
