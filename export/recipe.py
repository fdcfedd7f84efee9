"""What each target and precision means: the dtype to trace in and the passes that lower the graphs, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnx_ir.passes import InPlacePass

from qwen_image_engine.engines.errors import UsageError
from qwen_image_engine.export.attention_to_multi_head_attention import (
    AttentionToMultiHeadAttention,
    AttentionWithoutTransposes,
)
from qwen_image_engine.export.cleanup import Cleanup, MergeReshapes
from qwen_image_engine.export.constants import FoldConstants
from qwen_image_engine.export.linear_to_gemm import LinearToGemm
from qwen_image_engine.export.rows import KeepRows
from qwen_image_engine.export.scale_into_layer_norm import ScaleIntoLayerNorm
from qwen_image_engine.export.sizes import ConstantShapes
from qwen_image_engine.export.split import SequenceToSplit
from qwen_image_engine.export.sum_of_squares import SumOfSquares

Passes = tuple[Callable[[], InPlacePass], ...]


@dataclass(frozen=True)
class Recipe:
    """How graphs for one target and precision are made.

    `dtype` is that of weights and arithmetic, by torch's name; `passes` run in order on every component;
    `excluded_layers` keep their weights in `dtype` where others are quantised.
    """

    target: str
    precision: str
    dtype: str
    passes: Passes
    excluded_layers: tuple[str, ...] = ()


_SIMPLIFY: Passes = (FoldConstants, SequenceToSplit, ConstantShapes, SumOfSquares, Cleanup)
_CPU: Passes = (
    *_SIMPLIFY,
    AttentionToMultiHeadAttention,
    AttentionWithoutTransposes,
    LinearToGemm,
    KeepRows,
    MergeReshapes,
    Cleanup,
    ScaleIntoLayerNorm,
    Cleanup,
)

RECIPES: Mapping[tuple[str, str], Recipe] = {
    (item.target, item.precision): item for item in (Recipe("cpu", "fp32", "float32", _CPU),)
}


def recipe(target: str, precision: str) -> Recipe:
    """The recipe of a pair.

    Raises:
        UsageError: no such pair.
    """
    found = RECIPES.get((target, precision))
    if found is None:
        known = ", ".join(f"--target {target} --precision {precision}" for target, precision in RECIPES)
        raise UsageError(f"cannot export for target {target!r} in precision {precision!r}; known: {known}")
    return found
