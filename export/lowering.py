"""Sequences of lowering passes: first for every graph, then for graphs with quantised linears."""

from collections.abc import Callable

from onnx_ir.passes import InPlacePass
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.export.passes.attention import AttentionToMultiHeadAttention, AttentionWithoutTransposes
from qwen_image_engine.export.passes.cleanup import Cleanup, MergeReshapes
from qwen_image_engine.export.passes.constant_shapes import ConstantShapes
from qwen_image_engine.export.passes.drop_round_trips import DropRoundTrips
from qwen_image_engine.export.passes.fold_constants import FoldConstants
from qwen_image_engine.export.passes.gates_apart import GatesApart
from qwen_image_engine.export.passes.joint_square_mean import JointSquareMean
from qwen_image_engine.export.passes.keep_rows import KeepRows
from qwen_image_engine.export.passes.layer_norm_in_float32 import LayerNormInFloat32
from qwen_image_engine.export.passes.linear_to_gemm import LinearToGemm
from qwen_image_engine.export.passes.quantised.fp8_attention import DecomposeFp8Attention, Fp8Attention
from qwen_image_engine.export.passes.quantised.fp8_cache import Fp8Cache
from qwen_image_engine.export.passes.quantised.gemm_float8 import GemmFloat8
from qwen_image_engine.export.passes.quantised.linear_to_int8 import LinearToInt8
from qwen_image_engine.export.passes.quantised.linear_to_static import LinearToStatic
from qwen_image_engine.export.passes.quantised.smooth_modulation import SmoothModulation
from qwen_image_engine.export.passes.quantised.value_scales import ScaleValues
from qwen_image_engine.export.passes.scale_into_layer_norm import ScaleIntoLayerNorm
from qwen_image_engine.export.passes.scale_into_queries import ScaleIntoQueries
from qwen_image_engine.export.passes.sequence_to_split import SequenceToSplit
from qwen_image_engine.export.passes.sum_of_squares import SumOfSquares

Passes = tuple[type[InPlacePass], ...]
QuantisingPasses = tuple[Callable[[QuantisedNetwork], InPlacePass], ...]

_SIMPLIFY: Passes = (FoldConstants, SequenceToSplit, ConstantShapes, SumOfSquares, Cleanup)
_GPU: Passes = (*_SIMPLIFY, DropRoundTrips, ScaleIntoQueries)
_ROWS: Passes = (LinearToGemm, KeepRows, MergeReshapes)

CPU: Passes = (
    *_SIMPLIFY,
    AttentionToMultiHeadAttention,
    AttentionWithoutTransposes,
    *_ROWS,
    Cleanup,
    ScaleIntoLayerNorm,
    Cleanup,
)
CUDA: Passes = (*_GPU, AttentionWithoutTransposes, *_ROWS, Cleanup)
TENSORRT: Passes = (
    *_GPU,
    LayerNormInFloat32,
    *_ROWS,
    CommonSubexpressionEliminationPass,
    JointSquareMean,
    Cleanup,
)
TENSORRT_BF16: Passes = (*TENSORRT, GatesApart)

STATIC: QuantisingPasses = (SmoothModulation, ScaleValues, LinearToStatic, Fp8Attention, Fp8Cache)
STATIC_CUDA: QuantisingPasses = (SmoothModulation, ScaleValues, LinearToStatic, GemmFloat8)
STATIC_TWIN: QuantisingPasses = (*STATIC, DecomposeFp8Attention)
INT8_PER_TOKEN: QuantisingPasses = (LinearToInt8, ScaleValues)
