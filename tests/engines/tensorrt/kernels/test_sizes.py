"""Sizes of open axes, on layers by hand: what joins, what widens, what is one row by another view."""

from __future__ import annotations

import json
from typing import Any

from qwen_image_engine.engines.core.contract import Contract, TensorSpec
from qwen_image_engine.engines.tensorrt.kernels.kernel import Kernel, kernels_of
from qwen_image_engine.engines.tensorrt.kernels.layer import read_layers
from qwen_image_engine.engines.tensorrt.kernels.ports import Ports

Tensor = tuple[str, list[int], str]
T, P, B = 10, 10, 3  # as many tokens before as in the call, which must not make them one


def tensor(name: str, dims: list[int], dtype: str = "BFloat16", strides: list[int] | None = None) -> dict[str, Any]:
    return {"Name": name, "Dimensions": dims, "Strides": strides or [], "Datatype": dtype, "Format": "Row major"}


def layer(
    tactic: str, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], *nodes: str, constants: Any = ()
) -> dict[str, Any]:
    kind = "gemm" if tactic == "gemm" else "kgen"
    return {
        "Name": f"{tactic}_myl0_0",
        "LayerType": kind,
        "Inputs": inputs,
        "Constants": [*constants],
        "Outputs": outputs,
        "TacticName": tactic,
        "Metadata": "".join(f"[ONNX Layer: {node}]" for node in nodes),
    }


def spec(name: str, *shape: str | int) -> TensorSpec:
    return TensorSpec(name, shape, "bfloat16", "")


def counted(
    layers: list[dict[str, Any]], inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], batch: bool = False
) -> tuple[tuple[Kernel, ...], bool]:
    names = {"Profiles": ["any"], "Attentions": ["Attention_1"], "Products": ["Gemm_1"], "FromCodes": []}
    found, read = read_layers(json.dumps({**names, "Layers": layers}))
    values = {"batch": B if batch else 1, "tokens": T, "prefix": P, "height": 4, "width": 5}
    ports = Ports.at(Contract("step", "", inputs, outputs), values, {} if batch else {"batch": 1})
    return kernels_of(found, read, ports)


X, KEY = spec("x", "batch", "tokens", 8), spec("key", "batch", "prefix", 8)


def test_keys_are_as_long_as_both_and_queries_as_the_call() -> None:
    kernels, known = counted(
        [
            layer("__myl_Cast_0x1", [tensor("x", [1, -1, 8])], [tensor("h", [-1, 8])]),
            layer(
                "__myl_MulConcTran_0x1",
                [tensor("key", [1, -1, 8]), tensor("h", [-1, 8])],
                [tensor("q", [2, -1, 4]), tensor("k", [2, 4, -1])],
            ),
            layer("__myl_ConcMove_0x1", [tensor("key", [1, -1, 8]), tensor("h", [-1, 8])], [tensor("v", [2, -1, 4])]),
            layer(
                "_gemm_mha_v2_0x1",
                [tensor("q", [2, -1, 4]), tensor("k", [2, 4, -1]), tensor("v", [2, -1, 4])],
                [tensor("y", [2, -1, 4])],
                "Attention_1",
            ),
        ],
        (X, KEY),
        (spec("y", "batch", "tokens", 8),),
    )
    assert known
    _, rope, copy, attention = kernels
    assert (rope.read, rope.written) == (2 * 8 * (P + T), 2 * 8 * (T + T + P))
    assert (copy.kind, copy.read, copy.written) == ("copy", 2 * 8 * (P + T), 2 * 8 * (P + T))
    assert (attention.read, attention.written) == (2 * 8 * (T + 2 * (T + P)), 2 * 8 * T)
    assert attention.flops == 4 * T * 8 * (T + P)


def test_heads_of_an_open_batch_are_an_axis_of_the_attention() -> None:
    kernels, known = counted(
        [
            layer("__myl_MulMove_0x1", [tensor("x", [-1, -1, 2, 4])], [tensor("q", [-1, -1, 4])]),
            layer("__myl_MulTran_0x1", [tensor("x", [-1, -1, 2, 4])], [tensor("k", [-1, 4, -1])]),
            layer("__myl_TranMove_0x1", [tensor("x", [-1, -1, 2, 4])], [tensor("v", [-1, -1, 4])]),
            layer(
                "_gemm_mha_v2_0x1",
                [tensor("q", [-1, -1, 4]), tensor("k", [-1, 4, -1]), tensor("v", [-1, -1, 4])],
                [tensor("z", [-1, -1, 4])],
                "Attention_1",
            ),
            layer("__myl_MoveResh_0x1", [tensor("z", [-1, -1, 4])], [tensor("y", [-1, -1, 8])]),
        ],
        (X,),
        (spec("y", "batch", "tokens", 8),),
        batch=True,
    )
    assert known
    assert kernels[3].read == 3 * 2 * 8 * B * T
    assert kernels[3].flops == B * 4 * T * 8 * T


def test_queries_and_keys_of_one_product_are_two_parts_of_a_row() -> None:
    both = tensor("both", [-1, 16])
    kernels, known = counted(
        [
            layer("gemm", [tensor("x", [-1, -1, 8])], [both], "Gemm_1", constants=[tensor("w", [8, 16])]),
            layer("__myl_SlicMulMove_0x1", [both, both], [tensor("q", [-1, -1, 4]), tensor("k", [-1, 4, -1])]),
            layer("__myl_TranMove_0x1", [tensor("x", [-1, -1, 2, 4])], [tensor("v", [-1, -1, 4])]),
            layer(
                "_gemm_mha_v2_0x1",
                [tensor("q", [-1, -1, 4]), tensor("k", [-1, 4, -1]), tensor("v", [-1, -1, 4])],
                [tensor("z", [-1, -1, 4])],
                "Attention_1",
            ),
            layer("__myl_MoveResh_0x1", [tensor("z", [-1, -1, 4])], [tensor("y", [-1, -1, 8])]),
        ],
        (X,),
        (spec("y", "batch", "tokens", 8),),
        batch=True,
    )
    assert known
    assert (kernels[1].read, kernels[1].written) == (2 * 16 * B * T, 2 * 16 * B * T)
    assert kernels[3].read == 3 * 2 * 8 * B * T


def test_a_mean_written_flat_is_one_for_each_head() -> None:
    kernels, known = counted(
        [
            layer("__myl_ReshMulMean_0x1", [tensor("x", [1, -1, 8])], [tensor("m", [-1, 1], "Float")], "ReduceMean_1"),
            layer(
                "__myl_AddSqrtDivMul_0x1",
                [tensor("x", [1, -1, 8]), tensor("m", [1, -1, 2, 1], "Float")],
                [tensor("y", [1, -1, 8])],
            ),
        ],
        (X,),
        (spec("y", "batch", "tokens", 8),),
    )
    assert known
    assert [kernel.kind for kernel in kernels] == ["norm", "norm"]
    assert kernels[0].written == 4 * 2 * T
    assert kernels[1].read == 2 * 8 * T + 4 * 2 * T


def test_parts_of_one_tensor_are_at_most_the_tensor() -> None:
    half, twice = tensor("h", [-1, 8], strides=[16, 1]), tensor("x", [1, -1, 8])
    kernels, _ = counted(
        [
            layer("gemm", [twice], [tensor("h", [-1, 16])], "Gemm_1", constants=[tensor("w", [8, 16])]),
            layer("__myl_SiluMul_0x1", [half, half], [tensor("y", [-1, 8])]),
            layer("__myl_MulMul_0x1", [twice, twice], [tensor("z", [-1, 8])]),
        ],
        (X,),
        (),
    )
    assert [kernel.kind for kernel in kernels] == ["product", "other", "other"]
    assert (kernels[0].flops, kernels[0].weights) == (2 * T * 8 * 16, 2 * 8 * 16)
    assert [kernel.read for kernel in kernels] == [2 * 8 * T, 2 * 16 * T, 2 * 8 * T]


def test_a_mask_is_queries_times_keys() -> None:
    heads, keys = tensor("x", [1, -1, 8]), tensor("k", [1, 8, -1])
    kernels, known = counted(
        [
            layer("__myl_IotaLess_0x1", [], [tensor("m", [1, 1, -1, -1])]),
            layer("__myl_MulTran_0x1", [heads], [keys]),
            layer("__myl_MulMove_0x1", [heads], [tensor("v", [1, -1, 8])]),
            layer(
                "_gemm_mha_v2_0x1",
                [heads, keys, tensor("m", [1, 1, -1, -1]), tensor("v", [1, -1, 8])],
                [tensor("y", [1, -1, 8])],
                "Attention_1",
            ),
        ],
        (X,),
        (spec("y", "batch", "tokens", 8),),
    )
    assert known
    assert kernels[0].written == 2 * T * T
    assert kernels[3].read == 2 * (3 * 8 * T + T * T)


def test_pictures_double_at_a_resize() -> None:
    image = spec("x", "batch", 8, "height", "width")
    layers = [layer("__myl_CastResiCast_0x1", [tensor("x", [1, 8, -1, -1])], [tensor("y", [1, 8, -1, -1])], "Resize_1")]
    kernels, known = counted(layers, (image,), (spec("y", "batch", 8, "2*height", "2*width"),))
    assert known
    assert (kernels[0].read, kernels[0].written) == (2 * 8 * 20, 2 * 8 * 80)


def test_sizes_that_do_not_end_as_the_contract_says_are_not_made_up() -> None:
    image = spec("x", "batch", 8, "2*height", "2*width")
    filters = [tensor("w", [4, 8, 3, 3])]
    strided = layer("conv", [tensor("x", [1, 8, -1, -1])], [tensor("h", [1, 4, -1, -1])], constants=filters)
    strided["LayerType"] = "correlation"
    end = layer("__myl_Silu_0x1", [tensor("h", [1, 4, -1, -1])], [tensor("y", [1, 4, -1, -1])])
    kernels, known = counted([strided, end], (image,), (spec("y", "batch", 4, "height", "width"),))
    assert not known
    assert [(kernel.read, kernel.written, kernel.flops) for kernel in kernels] == [
        (2 * 8 * 80, None, None),
        (None, 2 * 4 * 20, 0),
    ]


def test_weights_that_are_inputs_count_as_weights() -> None:
    kernels, known = counted(
        [layer("gemm", [tensor("x", [1, -1, 8]), tensor("w", [16, 8])], [tensor("y", [-1, 16])], "Gemm_1")],
        (X,),
        (spec("y", "batch", "tokens", 16),),
    )
    assert known
    assert (kernels[0].read, kernels[0].weights, kernels[0].flops) == (2 * 8 * T, 2 * 16 * 8, 2 * T * 8 * 16)
