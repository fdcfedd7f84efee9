"""The scale of FP8 attention's probabilities: a constant that stands in no graph, so the builder adds and names it.

A plan without weights has no constants either, and the parser's refitter knows those of the graph alone: this one is
set by its name.
"""

from __future__ import annotations

import numpy as np
import tensorrt as trt

from qwen_image_engine.engines.bfloat16 import to_bfloat16
from qwen_image_engine.engines.errors import QwenImageError

NAME = "softmax_scale"
"""Of the constant, among an engine's weights."""


class SoftmaxScale:
    """One number in bfloat16; TensorRT refers to its bytes, so it lives until an engine is built or refitted."""

    def __init__(self, scale: float) -> None:
        self.bits = to_bfloat16(np.array([scale], np.float32))
        self.weights = trt.Weights(trt.bfloat16, self.bits.ctypes.data, 1)

    def give_to(self, attention: trt.IAttention, network: trt.INetworkDefinition) -> None:
        """Let an attention of `network` quantise its probabilities to FP8 by it."""
        attention.normalization_quantize_scale = network.add_constant(trt.Dims(()), self.weights).get_output(0)
        attention.normalization_quantize_to_type = trt.fp8

    def name_in(self, network: trt.INetworkDefinition, component: str) -> None:
        """Name its uses in `network`, after the last of them.

        Raises:
            QwenImageError: TensorRT does not take the name.
        """
        if not network.set_weights_name(self.weights, NAME):
            raise QwenImageError(
                f"{component}: TensorRT does not take the name {NAME} for the scale of FP8 attention, without which a "
                "plan without weights cannot get it; build without --strip-weights"
            )

    def refit(self, refitter: trt.Refitter) -> bool:
        """Give it to an engine that was built without weights; whether TensorRT takes it."""
        return refitter.set_named_weights(NAME, self.weights)
