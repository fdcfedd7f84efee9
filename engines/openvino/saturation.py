"""A test whether OpenVINO's integer products are exact on this processor."""

from functools import cache
from typing import Any

import numpy as np

from qwen_image_engine.engines.openvino.package import core, openvino


def has_int8_weights(graph: Any) -> bool:
    """Return whether an `openvino.Model` holds int8 constants."""
    int8 = openvino().Type.i8
    return any(op.get_type_name() == "Constant" and op.get_output_element_type(0) == int8 for op in graph.get_ops())


@cache
def products_saturate() -> bool:
    """Return whether a product of uint8 rows by int8 weights, both at their largest, is wrong.

    OpenVINO's kernels for processors without VNNI add pairs of such products in 16 bits: 2 * 255 * 127 becomes 32767,
    half of the exact sum. OpenVINO does not say which kernel it would take, and a processor's flags are read
    differently on every system, so one product is tried. The product takes 20 ms once a process.
    """
    package = openvino()
    op = package.opset13
    size = 64
    rows = op.parameter([-1, size], np.float32)
    low, high = np.float32(0), np.float32(255)
    codes = op.fake_quantize(rows, low, high, low, high, 256)
    weights = op.convert(op.constant(np.full((size, size), 127, np.int8)), "f32")
    product = op.matmul(codes, op.multiply(weights, np.ones((size, 1), np.float32)), False, True)
    model = package.Model([product], [rows], "saturation")
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (found,) = compiled.create_infer_request().infer({0: np.full((4, size), 255, np.float32)}).values()
    return bool(np.abs(found / (255 * 127 * size) - 1).max() > 1e-3)
