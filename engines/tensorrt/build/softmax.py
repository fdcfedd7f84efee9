"""The scale of FP8 attention's probabilities: a constant that stands in no graph, so the builder adds it."""

from __future__ import annotations

import numpy as np
import tensorrt as trt

from qwen_image_engine.engines.core.bfloat16 import to_bfloat16


class SoftmaxScale:
    """One number in bfloat16; TensorRT refers to its bytes, so it lives until the engine is built."""

    def __init__(self, scale: float) -> None:
        self.bits = to_bfloat16(np.array([scale], np.float32))
        self.weights = trt.Weights(trt.bfloat16, self.bits.ctypes.data, 1)

    def give_to(self, attention: trt.IAttention, network: trt.INetworkDefinition) -> bool:
        """Let an attention of `network` quantise its probabilities to FP8 by it; whether TensorRT takes that.

        Its setters refuse in silence.
        """
        attention.normalization_quantize_scale = network.add_constant(trt.Dims(()), self.weights).get_output(0)
        attention.normalization_quantize_to_type = trt.fp8
        return (
            attention.normalization_quantize_scale is not None and attention.normalization_quantize_to_type == trt.fp8
        )
