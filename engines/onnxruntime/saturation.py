"""A test whether ONNX Runtime's integer products are exact on this processor."""

from functools import cache

import numpy as np

from qwen_image_engine.engines.core.protobuf import integer_field, message_field
from qwen_image_engine.engines.onnxruntime.package import onnxruntime

# The fields of onnx.proto that one product of uint8 by int8 takes (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto):
# the runtime does without the package onnx.
_UINT8, _INT8, _INT32 = 2, 3, 6


@cache
def products_saturate() -> bool:
    """Return whether a product of uint8 rows by int8 weights, both at their largest, is wrong.

    The kernels for processors without VNNI add pairs of such products in 16 bits: 2 * 255 * 127 becomes 32767, half of
    the exact sum. ONNX Runtime does not say which kernel it would take, so one product is tried. The product takes a
    few milliseconds once a process.
    """
    package = onnxruntime()
    size = 64
    options = package.SessionOptions()
    options.intra_op_num_threads = 1
    session = package.InferenceSession(_product_model(), options, providers=["CPUExecutionProvider"])
    rows, weights = np.full((4, size), 255, np.uint8), np.full((size, size), 127, np.int8)
    (found,) = session.run(None, {"rows": rows, "weights": weights})
    return bool((found != 255 * 127 * size).any())


def _product_model() -> bytes:
    """Return a model of one MatMulInteger: product (…) int32 = rows (…) uint8 times weights (…) int8."""
    node = (
        message_field(1, b"rows")
        + message_field(1, b"weights")
        + message_field(2, b"product")
        + message_field(4, b"MatMulInteger")
    )
    ports = (
        message_field(11, _port(b"rows", _UINT8)),
        message_field(11, _port(b"weights", _INT8)),
        message_field(12, _port(b"product", _INT32)),
    )
    graph = message_field(1, node) + message_field(2, b"product") + b"".join(ports)
    return integer_field(1, 10) + message_field(7, graph) + message_field(8, integer_field(2, 13))  # IR 10, opset 13


def _port(name: bytes, dtype: int) -> bytes:
    return message_field(1, name) + message_field(2, message_field(1, integer_field(1, dtype)))
