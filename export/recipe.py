"""What each target and precision means: the dtype to trace in and the passes that lower the graphs, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx_ir.passes import InPlacePass

from qwen_image_engine.engines.errors import UsageError
from qwen_image_engine.export.attention_to_multi_head_attention import (
    AttentionToMultiHeadAttention,
    AttentionWithoutTransposes,
)
from qwen_image_engine.export.cleanup import Cleanup, MergeReshapes
from qwen_image_engine.export.constants import FoldConstants
from qwen_image_engine.export.linear_to_gemm import LinearToGemm
from qwen_image_engine.export.linear_to_int8 import LinearToInt8
from qwen_image_engine.export.quantised_network import Quantisation, QuantisedNetwork
from qwen_image_engine.export.rows import KeepRows
from qwen_image_engine.export.scale_into_layer_norm import ScaleIntoLayerNorm
from qwen_image_engine.export.sizes import ConstantShapes
from qwen_image_engine.export.split import SequenceToSplit
from qwen_image_engine.export.sum_of_squares import SumOfSquares
from qwen_image_engine.export.value_scales import ScaleValues

Passes = tuple[Callable[[], InPlacePass], ...]
QuantisingPasses = tuple[Callable[[QuantisedNetwork], InPlacePass], ...]


@dataclass(frozen=True)
class Recipe:
    """How graphs for one target and precision are made.

    `dtype` is that of weights and arithmetic that are not quantised, by torch's name; `passes` run in order on every
    component; `quantising` after them on components with quantised linears, which `quantisation` chooses.
    """

    target: str
    precision: str
    dtype: str
    passes: Passes
    quantisation: Quantisation | None = None
    quantising: QuantisingPasses = ()


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

# benchmarks/quantisation.py on `shapes`: teacher-forced 1.8% without rotations, 1.4% with 16 channels, 1.3% with 64 and
# with 256. One product of 4096 channels, one in 128 of them 60 times as large: 6.1%, 2.0%, 1.3%, 1.2%. On AMX that
# product takes 16 ms without, 20 ms with 64 and 26 ms with 256, which is more than the last 0.1% is worth.
_LARGEST_ROTATION = 64

RECIPES: Mapping[tuple[str, str], Recipe] = {
    (item.target, item.precision): item
    for item in (
        Recipe("cpu", "fp32", "float32", _CPU),
        Recipe("cpu", "int8", "float32", _CPU, Quantisation(_LARGEST_ROTATION), (LinearToInt8, ScaleValues)),
    )
}


def recipe(
    target: str,
    precision: str,
    *,
    weights: str = "copy",
    exclude: Sequence[str] = (),
    skip_blocks: Sequence[int] = (),
) -> Recipe:
    """The recipe of a pair, with what the caller wants kept in its precision.

    Args:
        target: what the graphs are lowered for.
        precision: of weights and arithmetic.
        weights: "copy" or "link".
        exclude: glob patterns of linears that are not quantised.
        skip_blocks: blocks of the transformer that are not quantised.

    Raises:
        UsageError: no such pair or way of placing weights, or one that does not go with the others.
    """
    found = RECIPES.get((target, precision))
    if found is None:
        known = ", ".join(f"--target {target} --precision {precision}" for target, precision in RECIPES)
        raise UsageError(f"cannot export for target {target!r} in precision {precision!r}; known: {known}")
    if weights not in ("copy", "link"):
        raise UsageError(f"weights {weights!r}: expected copy or link")
    if found.quantisation is None:
        if exclude or skip_blocks:
            raise UsageError(f"--exclude and --skip-blocks choose what is not quantised; {precision} quantises nothing")
        return found
    if weights == "link":
        raise UsageError(
            f"--weights link with --precision {precision}: quantised weights are no bytes of the checkpoint's files; "
            "use --weights copy"
        )
    chosen = replace(found.quantisation, exclude=tuple(exclude), skip_blocks=tuple(sorted(set(skip_blocks))))
    return replace(found, quantisation=chosen)
