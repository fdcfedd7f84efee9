"""A small graph for the real compiler, with what a plan must not have planted in it."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

WIDTH = 768
TOKENS = ((64, WIDTH), (256, WIDTH), (512, WIDTH))
"""Shapes of the input for a profile, without the batch axis."""


class PlantedGraph:
    """A chain of products and attentions on bf16 tokens (1, tokens, 768), each with the name that is given."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._weights: list[TensorProto] = []
        self._inputs = [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [1, "tokens", WIDTH])]
        self._rng = np.random.default_rng(0)
        self._value = "x"
        self._scale = self._constant("scale", np.array(0.01, ml_dtypes.bfloat16))

    def product(self, name: str, *, input_fp8: bool = False, weight_fp8: bool = False) -> None:
        """Add a product with a stored weight; an operand in FP8 passes through codes."""
        value = self._through_fp8(self._value, name) if input_fp8 else self._value
        weight = self._constant(f"{name}.weight", self._random().astype(ml_dtypes.bfloat16))
        if weight_fp8:
            weight = self._through_fp8(weight, f"{name}.weight")
        self._value = self._add("MatMul", [value, weight], name)

    def attention(self, name: str, heads: int, *, mask: bool = False) -> None:
        """Add an attention with its own queries, keys and values; with a mask that is an input of the graph."""
        start, parts = self._value, []
        split = self._constant(f"{name}.split", np.array([0, 0, heads, WIDTH // heads]))
        for part in ("q", "k", "v"):
            self._value = start
            self.product(f"{name}.{part}")
            apart = self._add("Reshape", [self._value, split], f"{name}.{part}.heads")
            parts.append(self._add("Transpose", [apart], f"{name}.{part}.first", perm=[0, 2, 1, 3]))
        if mask:
            self._inputs.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, [1, 1, "tokens", "tokens"]))
            parts.append("mask")
        made = self._add("Attention", parts, name, scale=0.1)
        last = self._add("Transpose", [made], f"{name}.last", perm=[0, 2, 1, 3])
        whole = self._constant(f"{name}.whole", np.array([0, 0, WIDTH]))
        self._value = self._add("Reshape", [last, whole], f"{name}.merged")

    def save(self, path: Path) -> Path:
        """Write the graph and return its path."""
        output = helper.make_tensor_value_info(self._value, TensorProto.BFLOAT16, [1, "tokens", WIDTH])
        graph = helper.make_graph(self._nodes, "planted", self._inputs, [output], self._weights)
        opsets = [helper.make_opsetid("", 23)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=11), path)
        return path

    def _through_fp8(self, value: str, name: str) -> str:
        zero = self._constant(f"{name}.zero", np.array(0, ml_dtypes.float8_e4m3fn))
        codes = self._add("QuantizeLinear", [value, self._scale, zero], f"{name}.codes")
        return self._add("DequantizeLinear", [codes, self._scale], f"{name}.values")

    def _random(self) -> np.ndarray:
        return self._rng.standard_normal((WIDTH, WIDTH), np.float32) / 32

    def _constant(self, name: str, value: np.ndarray) -> str:
        self._weights.append(numpy_helper.from_array(value, name))
        return name

    def _add(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"
