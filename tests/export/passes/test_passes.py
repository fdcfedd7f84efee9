"""Each lowering pass on a small graph of torch's making in miniature: the same values, other nodes."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import InPlacePass

from qwen_image_engine.export.graph.shapes import readable, reshape_target, runtime_shape
from qwen_image_engine.export.passes.cleanup import Cleanup, MergeConstants, MergeReshapes
from qwen_image_engine.export.passes.constant_shapes import ConstantShapes
from qwen_image_engine.export.passes.fold_constants import FoldConstants
from qwen_image_engine.export.passes.gates_apart import GatesApart
from qwen_image_engine.export.passes.joint_square_mean import JointSquareMean
from qwen_image_engine.export.passes.keep_rows import KeepRows
from qwen_image_engine.export.passes.layer_norm_in_float32 import LayerNormInFloat32
from qwen_image_engine.export.passes.linear_to_gemm import LinearToGemm
from qwen_image_engine.export.passes.scale_into_layer_norm import ScaleIntoLayerNorm
from qwen_image_engine.export.passes.scale_into_queries import ScaleIntoQueries
from qwen_image_engine.export.passes.sequence_to_split import SequenceToSplit
from qwen_image_engine.export.passes.sum_of_squares import SumOfSquares

RNG = np.random.default_rng(0)


def model(text: str, **weights: Any) -> ir.Model:
    """A graph in ONNX's text form; `weights` become initializers. Values get their inferred symbolic shapes."""
    proto = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : 23]>\n{text}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def check(graph: ir.Model, passes: list[type[InPlacePass]], **inputs: Any) -> Counter[str]:
    """Run the passes, compare values before and after, and count the nodes that are left."""
    expected = ReferenceEvaluator(ir.to_proto(graph)).run(None, inputs)
    names = [value.name for value in graph.graph.outputs]
    for item in passes:
        item()(graph)
    Cleanup()(graph)
    found = ReferenceEvaluator(ir.to_proto(graph)).run(None, inputs)
    assert [value.name for value in graph.graph.outputs] == names
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    return Counter(node.op_type for node in graph.graph)


def test_linear_becomes_gemm_on_the_stored_weight() -> None:
    text = """linear (float[b, s, 4] x) => (float[b, s, 3] y) {
        t = Transpose<perm = [1, 0]>(w)
        y = MatMul(x, t)
    }"""
    graph = model(text, w=RNG.standard_normal((3, 4), dtype=np.float32))
    counts = check(graph, [LinearToGemm], x=RNG.standard_normal((2, 5, 4), dtype=np.float32))
    assert counts == {"Gemm": 1, "Reshape": 2, "Shape": 2, "Concat": 1}
    assert next(iter(graph.graph.initializers)) == "w"


def test_a_bias_goes_into_the_gemm() -> None:
    text = """linear (float[b, s, 4] x) => (float[b, s, 3] y) {
        t = Transpose<perm = [1, 0]>(w)
        a = MatMul(x, t)
        y = Add(a, c)
    }"""
    x = RNG.standard_normal((2, 5, 4), dtype=np.float32)
    weight = RNG.standard_normal((3, 4), dtype=np.float32)
    counts = check(model(text, w=weight, c=np.float32([1, 2, 3])), [LinearToGemm], x=x)
    assert (counts["Gemm"], counts["Add"]) == (1, 0)
    # One of more axes is no bias of a Gemm.
    assert (
        check(model(text, w=weight, c=RNG.standard_normal((5, 3), dtype=np.float32)), [LinearToGemm], x=x)["Add"] == 1
    )


def test_a_convolution_as_large_as_its_stride_becomes_gemm() -> None:
    text = """patches (float[b, s, 4] x) => (float[b, s, 3] y) {
        m = Reshape(w, flat)
        t = Transpose<perm = [1, 0]>(m)
        y = MatMul(x, t)
    }"""
    graph = model(text, w=RNG.standard_normal((3, 2, 2), dtype=np.float32), flat=np.array([3, 4]))
    counts = check(graph, [LinearToGemm], x=RNG.standard_normal((2, 5, 4), dtype=np.float32))
    assert (counts["Gemm"], counts["Transpose"]) == (1, 0)


def test_a_product_of_activations_stays() -> None:
    text = "product (float[b, 3, 4] x, float[b, 4, 3] z) => (float[b, 3, 3] y) { y = MatMul(x, z) }"
    inputs = {
        name: RNG.standard_normal(shape, dtype=np.float32) for name, shape in {"x": (2, 3, 4), "z": (2, 4, 3)}.items()
    }
    assert check(model(text), [LinearToGemm, KeepRows], **inputs) == {"MatMul": 1}


def test_rows_are_kept_between_two_linears() -> None:
    text = """chain (float[b, s, 4] x, float[1, 1, 4] scale) => (float[b, s, 4] y) {
        t = Transpose<perm = [1, 0]>(w)
        a = MatMul(x, t)
        g = Sigmoid(a)
        h = Mul(a, g)
        c = MatMul(h, t)
        y = Add(x, c)
    }"""
    graph = model(text, w=RNG.standard_normal((4, 4), dtype=np.float32))
    x = RNG.standard_normal((2, 5, 4), dtype=np.float32)
    counts = check(graph, [LinearToGemm, KeepRows, MergeReshapes], x=x, scale=x[:1, :1])
    # In and out once; the Reshapes between the two products cancel.
    assert counts["Reshape"] == 2
    assert counts["Gemm"] == 2


def test_a_scale_for_every_token_goes_into_the_norm() -> None:
    text = """norm (float[n, 4] x, float[1, 4] scale) => (float[n, 4] y) {
        a = LayerNormalization<axis = -1, epsilon = 1e-6>(x, ones)
        y = Mul(a, scale)
    }"""
    inputs = {
        "x": RNG.standard_normal((5, 4), dtype=np.float32),
        "scale": RNG.standard_normal((1, 4), dtype=np.float32),
    }
    graph = model(text, ones=np.ones(4, np.float32))
    assert check(graph, [ScaleIntoLayerNorm], **inputs) == {"Reshape": 1, "LayerNormalization": 1}
    # A norm that has a weight of its own keeps it.
    graph = model(text, ones=np.full(4, 2, np.float32))
    assert check(graph, [ScaleIntoLayerNorm], **inputs)["Mul"] == 1


@pytest.mark.parametrize("attribute", ["<scale = 0.3>", ""])
def test_attention_scales_nothing(attribute: str) -> None:
    """The queries are multiplied where they are float32, before they are laid out, and no node is left behind."""
    text = f"""attention (float[b, s, 16] x, float[b, 2, t, 8] k, float[b, 2, t, 8] v) => (float[b, 2, s, 8] y) {{
        h = Reshape(x, split)
        q = Transpose<perm = [0, 2, 1, 3]>(h)
        y = Attention {attribute} (q, k, v)
    }}"""
    graph = model(text, split=np.array([0, 0, 2, 8]))
    keys = RNG.standard_normal((2, 2, 2, 7, 8), dtype=np.float32)
    counts = check(graph, [ScaleIntoQueries], x=RNG.standard_normal((2, 5, 16), dtype=np.float32), k=keys[0], v=keys[1])
    assert counts == {"Mul": 1, "Reshape": 1, "Transpose": 1, "Attention": 1}
    nodes = {node.op_type: node for node in graph.graph}
    assert nodes["Attention"].attributes["scale"].as_float() == 1
    assert nodes["Mul"].inputs[0] is graph.graph.inputs[0]


def test_queries_that_are_rounded_are_scaled_before() -> None:
    text = """attention (float[b, 2, s, 8] x, float16[b, 2, s, 8] k) => (float16[b, 2, s, 8] y) {
        q = Cast<to = 10>(x)
        y = Attention(q, k, k)
    }"""
    graph = model(text)
    ScaleIntoQueries()(graph)
    assert [node.op_type for node in graph.graph] == ["Mul", "Cast", "Attention"]
    text = """attention (float16[b, 2, s, 8] q, float16[b, 2, s, 8] k) => (float16[b, 2, s, 8] y) {
        y = Attention(q, k, k)
    }"""
    graph = model(text)
    ScaleIntoQueries()(graph)
    assert [node.op_type for node in graph.graph] == ["Cast", "Mul", "Cast", "Attention"]
    assert all(use.node.graph is graph.graph for use in graph.graph.inputs[0].uses())


def test_layer_norms_are_float32() -> None:
    text = """norm (float16[b, s, 4] x) => (float16[b, s, 4] y) {
        a = LayerNormalization<axis = -1>(x, scale)
        y = Sigmoid(a)
    }"""
    graph = model(text, scale=np.float16([1, 2, 3, 4]))
    LayerNormInFloat32()(graph)
    assert [node.op_type for node in graph.graph] == ["Cast", "Cast", "LayerNormalization", "Cast", "Sigmoid"]
    norm = next(node for node in graph.graph if node.op_type == "LayerNormalization")
    assert {value.dtype for value in (*norm.inputs, *norm.outputs)} == {ir.DataType.FLOAT}
    assert graph.graph.outputs[0].dtype == ir.DataType.FLOAT16
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    assert not LayerNormInFloat32()(graph).modified


def heads_normed(queries: int, keys: int) -> str:
    """Queries and keys of a block in heads of 8 channels, each with its norm; the keys are an output of their own."""
    return f"""norms (float[b, s, 6] x) => (float[b, s, {queries}, 8] q, float[b, s, {keys}, 8] k) {{
        rows = Reshape(x, flat)
        a = Gemm<transB = 1>(rows, to_q)
        c = Gemm<transB = 1>(rows, to_k)
        d = Reshape(a, heads_q)
        e = Reshape(c, heads_k)
        q = RMSNormalization<axis = -1, epsilon = 0.5>(d, norm_q)
        k = RMSNormalization<axis = -1, epsilon = 0.5>(e, norm_k)
    }}"""


def normed_weights(queries: int, keys: int, batch: int, tokens: int) -> dict[str, Any]:
    sizes = {"to_q": (queries * 8, 6), "to_k": (keys * 8, 6), "norm_q": (8,), "norm_k": (8,)}
    weights: dict[str, Any] = {name: RNG.standard_normal(size, dtype=np.float32) for name, size in sizes.items()}
    heads = {name: np.array([batch, tokens, count, 8]) for name, count in (("heads_q", queries), ("heads_k", keys))}
    return {**weights, **heads, "flat": np.array([-1, 6])}


@pytest.mark.parametrize(("queries", "keys"), [(3, 3), (4, 2)])
def test_norms_of_queries_and_keys_share_one_mean(queries: int, keys: int) -> None:
    graph = model(heads_normed(queries, keys), **normed_weights(queries, keys, 2, 5))
    for value, heads in zip(graph.graph.outputs, (queries, keys), strict=True):
        value.shape = ir.Shape(["b", "s", heads, 8])
    counts = check(graph, [JointSquareMean], x=RNG.standard_normal((2, 5, 6), dtype=np.float32))
    assert counts["RMSNormalization"] == 0
    assert counts["ReduceMean"] == counts["Split"] == 1
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)


def test_a_norm_without_a_partner_stays() -> None:
    """One on its own, norms of other epsilons, and norms of products of other rows."""
    text, weights = heads_normed(2, 2), normed_weights(2, 2, 2, 5)
    for before, after in (
        ("k = RMSNormalization<axis = -1, epsilon = 0.5>(e, norm_k)", "k = Mul(e, norm_k)"),
        ("epsilon = 0.5>(e", "epsilon = 0.25>(e"),
        ("c = Gemm<transB = 1>(rows, to_k)", "other = Sigmoid(rows)\n c = Gemm<transB = 1>(other, to_k)"),
    ):
        assert before in text
        graph = model(text.replace(before, after), **weights)
        for value in graph.graph.outputs:
            value.shape = ir.Shape(["b", "s", 2, 8])
        counts = check(graph, [JointSquareMean], x=RNG.standard_normal((2, 5, 6), dtype=np.float32))
        assert counts["ReduceMean"] == 0


GATED = """mlp (float[n, 4] x, float[n, 4] z) => (float[n, 3] y) {
    a = Gemm<transB = 1>(x, gate)
    s = Sigmoid(a)
    silu = Mul(a, s)
    c = Gemm<transB = 1>(x, up)
    h = Mul(silu, c)
    y = Gemm<transB = 1>(h, down)
}"""


@pytest.mark.parametrize(
    ("before", "after", "apart"),
    [
        ("h = Mul(silu, c)", "h = Mul(silu, c)", True),
        ("h = Mul(silu, c)", "h = Mul(c, silu)", True),
        ("silu = Mul(a, s)", "silu = Mul(s, a)", True),
        ("c = Gemm<transB = 1>(x, up)", "c = Gemm<transB = 1>(z, up)", False),  # apart as they are
        ("c = Gemm<transB = 1>(x, up)", "c = Gemm<transB = 1>(x, up, bias)", False),
        ("s = Sigmoid(a)", "s = Tanh(a)", False),
        ("h = Mul(silu, c)", "h = Add(silu, c)", False),
    ],
)
def test_the_products_of_a_gated_mlp_read_different_rows(before: str, after: str, apart: bool) -> None:
    sizes = {"gate": (6, 4), "up": (6, 4), "down": (3, 6), "bias": (6,)}
    weights = {name: RNG.standard_normal(size, dtype=np.float32) for name, size in sizes.items()}
    assert before in GATED
    graph = model(GATED.replace(before, after), **weights)
    inputs = {name: RNG.standard_normal((5, 4), dtype=np.float32) for name in ("x", "z")}
    (expected,) = ReferenceEvaluator(ir.to_proto(graph)).run(None, inputs)
    counts = check(graph, [GatesApart], **inputs)
    assert counts["Mul"] == 2 - ("Add" in after) + 2 * apart
    gemms = [node for node in graph.graph if node.op_type == "Gemm"]
    assert (gemms[0].inputs[0] is not gemms[1].inputs[0]) == (apart or "(z" in after)
    assert [node.inputs[1].name for node in gemms if node.inputs[1] is not None] == ["gate", "up", "down"]
    # Powers of two: not a bit is lost.
    np.testing.assert_array_equal(ReferenceEvaluator(ir.to_proto(graph)).run(None, inputs)[0], expected)


def test_squares_are_summed_without_being_written() -> None:
    text = """norm (float[n, 4, h] x) => (float[n, 1, h] y) {
        a = Pow(x, two)
        y = ReduceSum<keepdims = 1>(a, axes)
    }"""
    graph = model(text, two=np.float32(2), axes=np.array([1]))
    assert check(graph, [SumOfSquares], x=RNG.standard_normal((2, 4, 3), dtype=np.float32)) == {"ReduceSumSquare": 1}


def test_sequences_become_one_split() -> None:
    text = """chunk (float[b, 9] x) => (float[b, 3] y) {
        s = SplitToSequence<axis = -1, keepdims = 1>(x, three)
        a = SequenceAt(s, zero)
        c = SequenceAt(s, one)
        y = Sub(c, a)
    }"""
    graph = model(text, three=np.int64(3), zero=np.int64(0), one=np.int64(1))
    counts = check(graph, [SequenceToSplit], x=RNG.standard_normal((2, 9), dtype=np.float32))
    assert counts == {"Split": 1, "Sub": 1}
    # The third part too, which nobody reads.
    split = next(node for node in graph.graph if node.op_type == "Split")
    assert [list(part.shape or ())[1] for part in split.outputs] == [3, 3, 3]


def test_constants_are_folded_and_weights_are_not() -> None:
    text = """constants (float[b, 4] x) => (float[b, 4] y) {
        size = Shape<start = -1>(x)
        one = Constant<value_float = 1.0>()
        ones = Expand(one, size)
        scale = Add(w, ones)
        y = Mul(x, scale)
    }"""
    graph = model(text, w=np.zeros(4, np.float32))
    weight = graph.graph.initializers["w"]
    weight.const_value = ir.ExternalTensor("unplaced", None, None, ir.DataType.FLOAT, shape=ir.Shape([4]), name="w")
    FoldConstants()(graph)
    Cleanup()(graph)
    assert Counter(node.op_type for node in graph.graph) == {"Add": 1, "Mul": 1}
    assert graph.graph.initializers["w"] is weight


def test_nodes_in_any_order_are_sorted_and_those_that_nothing_reads_removed() -> None:
    text = """any (float[2] x) => (float[2] y) {
        a = Neg(x)
        unused = Exp(a)
        unread = Abs(unused)
        b = Relu(a)
        y = Add(b, x)
    }"""
    graph = model(text)
    nodes = list(graph.graph)
    graph.graph.remove(nodes)
    graph.graph.extend([nodes[index] for index in (4, 2, 1, 3, 0)])
    Cleanup()(graph)
    assert [node.op_type for node in graph.graph] == ["Neg", "Relu", "Add"]


def test_equal_constants_are_merged() -> None:
    text = "twice (float[b, 2] x) => (float[b, 2] y) {\n a = Add(x, c)\n y = Mul(a, d)\n}"
    graph = model(text, c=np.array([1, 2], np.float32), d=np.array([1, 2], np.float32))
    assert MergeConstants()(graph).modified
    assert list(graph.graph.initializers) == ["c"]


@pytest.mark.parametrize(
    ("before", "after", "target"),
    [
        (["b", "s", 6], ["b", "s", 2, 3], [0, 0, 2, 3]),
        (["b", 6, "h", "w"], ["b", 6, "h*w"], [0, 6, -1]),
        (["b", "s", 2, 3], ["b", "s", 6], [0, 0, 6]),
        (["b", "h*w", 6], ["b", "h", "w", 6], None),  # two free sizes
        (["s", "b"], ["b", "s"], None),
        (None, ["b"], None),
    ],
)
def test_constant_reshape_targets(before: Any, after: Any, target: Any) -> None:
    assert reshape_target(before, after) == target


def test_sizes_are_read_from_the_inputs_once() -> None:
    text = "image (float[b, 4, h, w] x) => (float[b, 4, h, w] y) { y = Identity(x) }"
    graph = model(text)
    graph.graph.inputs[0].shape = ir.Shape(["b", 4, "16*h", "16*w"])
    assert readable(graph.graph, ["b", "8*h", "w"])
    assert not readable(graph.graph, ["32*h"])
    assert not readable(graph.graph, ["b*h"])
    first = runtime_shape(graph.graph, ["b", "8*h", "w"])
    assert runtime_shape(graph.graph, ["b", "8*h", "w"]) is first
    graph.graph.outputs[0] = first
    (found,) = ReferenceEvaluator(ir.to_proto(graph)).run(None, {"x": np.zeros((3, 4, 32, 64), np.float32)})
    assert found.tolist() == [3, 16, 4]
    with pytest.raises(ValueError, match="no input"):
        runtime_shape(graph.graph, ["other"])


def test_sums_of_sizes_are_added_up() -> None:
    text = """two (float[b, n, 4] x, float[b, s, 4] y) => (float[b, n, 4] z) { z = Identity(x) }"""
    graph = model(text)
    graph.graph.inputs[1].shape = ir.Shape(["b", "2*s", 4])
    assert readable(graph.graph, ["b", "s + n", 4])
    assert readable(graph.graph, ["b", "2*s+n"])
    assert not readable(graph.graph, ["s + m"])
    graph.graph.outputs[0] = runtime_shape(graph.graph, ["b", "s + n", 4])
    inputs = {"x": np.zeros((2, 5, 4), np.float32), "y": np.zeros((2, 6, 4), np.float32)}
    (found,) = ReferenceEvaluator(ir.to_proto(graph)).run(None, inputs)
    assert found.tolist() == [2, 3 + 5, 4]
    with pytest.raises(ValueError, match="no input of two has an axis m"):
        runtime_shape(graph.graph, ["s + m"])


def test_torchs_shape_arithmetic_goes() -> None:
    text = """heads (float[b, s, 6] x) => (float[b, s, 2, 3] y) {
        sb = Shape<start = 0, end = 1>(x)
        ss = Shape<start = 1, end = 2>(x)
        target = Concat<axis = 0>(sb, ss, two, three)
        y = Reshape(x, target)
    }"""
    graph = model(text, two=np.array([2]), three=np.array([3]))
    graph.graph.outputs[0].shape = ir.Shape(["b", "s", 2, 3])
    counts = check(graph, [ConstantShapes], x=RNG.standard_normal((2, 5, 6), dtype=np.float32))
    assert counts == {"Reshape": 1}
