"""What each target and precision means: the dtype to trace in and the passes that lower the graphs, as data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx_ir.passes import InPlacePass

from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.calibration.rules.quantisation import HIGH, QUANTISATIONS, Quantisation, Rule
from qwen_image_engine.calibration.rules.recipe_file import RecipeFile
from qwen_image_engine.engines.core.components import COMPONENTS, FOR_REFERENCE_IMAGES
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.export.passes.attention import AttentionToMultiHeadAttention, AttentionWithoutTransposes
from qwen_image_engine.export.passes.cleanup import Cleanup, MergeReshapes
from qwen_image_engine.export.passes.constant_shapes import ConstantShapes
from qwen_image_engine.export.passes.drop_round_trips import DropRoundTrips
from qwen_image_engine.export.passes.fold_constants import FoldConstants
from qwen_image_engine.export.passes.keep_rows import KeepRows
from qwen_image_engine.export.passes.layer_norm_in_float32 import LayerNormInFloat32
from qwen_image_engine.export.passes.linear_to_gemm import LinearToGemm
from qwen_image_engine.export.passes.quantised.fp8_attention import DecomposeFp8Attention, Fp8Attention
from qwen_image_engine.export.passes.quantised.gemm_float8 import GemmFloat8
from qwen_image_engine.export.passes.quantised.linear_to_int8 import LinearToInt8
from qwen_image_engine.export.passes.quantised.linear_to_static import LinearToStatic
from qwen_image_engine.export.passes.quantised.smooth_modulation import SmoothModulation
from qwen_image_engine.export.passes.quantised.value_scales import ScaleValues
from qwen_image_engine.export.passes.scale_into_layer_norm import ScaleIntoLayerNorm
from qwen_image_engine.export.passes.scale_into_queries import ScaleIntoQueries
from qwen_image_engine.export.passes.sequence_to_split import SequenceToSplit
from qwen_image_engine.export.passes.sum_of_squares import SumOfSquares
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.components import components

Passes = tuple[Callable[[], InPlacePass], ...]
QuantisingPasses = tuple[Callable[[QuantisedNetwork], InPlacePass], ...]


@dataclass(frozen=True)
class Recipe:
    """How graphs for one target and precision are made.

    Attributes:
        target: what runs them.
        precision: of the bundle, by the manifest.
        dtype: of weights and arithmetic that are not quantised, and of keys and values, by torch's name.
        passes: run in order on every component.
        quantisation: which linears are quantised, and to what.
        quantising: passes that run after the others where any are.
        audited: whether ONNX Runtime has to run every quantised linear as a product of integers.
        in_float32: networks that are in float32 all the same.
    """

    target: str
    precision: str
    dtype: str
    passes: Passes
    quantisation: Quantisation | None = None
    quantising: QuantisingPasses = ()
    audited: bool = False
    in_float32: frozenset[str] = frozenset()

    def dtype_of(self, network: str) -> str:
        """That of a network, one of `NETWORKS`, where it is not quantised."""
        return "float32" if network in self.in_float32 else self.dtype


_SIMPLIFY: Passes = (FoldConstants, SequenceToSplit, ConstantShapes, SumOfSquares, Cleanup)
_GPU: Passes = (*_SIMPLIFY, DropRoundTrips, ScaleIntoQueries)
_ROWS: Passes = (LinearToGemm, KeepRows, MergeReshapes, Cleanup)

_CPU: Passes = (
    *_SIMPLIFY,
    AttentionToMultiHeadAttention,
    AttentionWithoutTransposes,
    *_ROWS,
    ScaleIntoLayerNorm,
    Cleanup,
)
_CUDA: Passes = (*_GPU, AttentionWithoutTransposes, *_ROWS)
_TENSORRT: Passes = (*_GPU, LayerNormInFloat32, *_ROWS)

# ONNX Runtime has bf16 kernels of Pad, ReduceMean and DepthToSpace neither on CUDA nor on the CPU, where it would put
# them; in fp16 the released VAE is said to give values that are not finite.
_CUDA_FLOAT32 = frozenset({"vae"})

_STATIC: QuantisingPasses = (SmoothModulation, ScaleValues, LinearToStatic, Fp8Attention)
_STATIC_CUDA: QuantisingPasses = (SmoothModulation, ScaleValues, LinearToStatic, GemmFloat8)
_STATIC_TWIN: QuantisingPasses = (*_STATIC, DecomposeFp8Attention)

RECIPES: Mapping[tuple[str, str], Recipe] = {
    (item.target, item.precision): item
    for item in (
        Recipe("cpu", "fp32", "float32", _CPU),
        Recipe("cpu", "int8", "float32", _CPU, QUANTISATIONS["cpu", "int8"], (LinearToInt8, ScaleValues), audited=True),
        Recipe("cuda", "bf16", "bfloat16", _CUDA, in_float32=_CUDA_FLOAT32),
        Recipe("cuda", "fp16", "float16", _CUDA, in_float32=_CUDA_FLOAT32),
        Recipe("cuda", "fp8", "float16", _CUDA, QUANTISATIONS["cuda", "fp8"], _STATIC_CUDA, in_float32=_CUDA_FLOAT32),
        Recipe("tensorrt", "bf16", "bfloat16", _TENSORRT),
        Recipe("tensorrt", "fp8", "bfloat16", _TENSORRT, QUANTISATIONS["tensorrt", "fp8"], _STATIC),
        Recipe("tensorrt", "int8", "bfloat16", _TENSORRT, QUANTISATIONS["tensorrt", "int8"], _STATIC),
        Recipe("tensorrt-twin", "fp8", "float32", _TENSORRT, QUANTISATIONS["tensorrt", "fp8"], _STATIC_TWIN),
        Recipe("tensorrt-twin", "int8", "float32", _TENSORRT, QUANTISATIONS["tensorrt", "int8"], _STATIC_TWIN),
    )
}
"""By target and precision. The twin is TensorRT's graph in float32, which ONNX Runtime runs on a CPU: its scales, its
codes, its passes; what it shows of accuracy is what TensorRT's products of 8 bits give before bf16 rounds the rest."""


def recipe(
    target: str,
    precision: str | None,
    *,
    weights: str = "copy",
    rules: RecipeFile | None = None,
    exclude: Sequence[str] = (),
    skip_blocks: Sequence[int] = (),
    fp8_attention: bool = False,
) -> Recipe:
    """The recipe of a pair, with what the caller wants otherwise.

    Args:
        target: what the graphs are lowered for.
        precision: of weights and arithmetic.
        weights: "copy" or "link".
        rules: in the place of the recipe's own.
        exclude: glob patterns of linears that are not quantised, before any rule.
        skip_blocks: blocks of the transformer that are not quantised.
        fp8_attention: whether attention of the transformer is FP8.

    Raises:
        UsageError: no such pair or way of placing weights, or one that does not go with the others.
    """
    if precision is None:  # the first of the target's, which needs no calibration; of one that is not known, an error
        precision = next((item.precision for item in RECIPES.values() if item.target == target), "fp32")
    found = RECIPES.get((target, precision))
    if found is None:
        known = ", ".join(f"--target {target} --precision {precision}" for target, precision in RECIPES)
        raise UsageError(f"cannot export for target {target!r} in precision {precision!r}; known: {known}")
    if weights not in ("copy", "link"):
        raise UsageError(f"weights {weights!r}: expected copy or link")
    if found.quantisation is None:
        if rules is not None or exclude or skip_blocks or fp8_attention:
            raise UsageError(
                "--recipe, --exclude, --skip-blocks and --fp8-attention choose what is quantised; "
                f"{precision} quantises nothing"
            )
        return found
    if weights == "link":
        raise UsageError(
            f"--weights link with --precision {precision}: quantised weights are no bytes of the checkpoint's files; "
            "use --weights copy"
        )
    if rules is not None:
        rules.check(found.quantisation.precisions(), found.quantisation.static, for_gpu=target == "tensorrt")
    fp8_attention |= rules is not None and rules.fp8_attention
    if fp8_attention and precision != "fp8":
        raise UsageError(f"FP8 attention in a bundle of precision {precision}: it goes with --precision fp8")
    if fp8_attention and target == "cuda":
        raise UsageError("FP8 attention with --target cuda: ONNX Runtime has none; it goes with --target tensorrt")
    skipped = {*skip_blocks, *(rules.skip_blocks if rules is not None else ())}
    chosen = replace(
        found.quantisation,
        rules=(*(Rule(pattern, HIGH) for pattern in exclude), *(rules.rules if rules else found.quantisation.rules)),
        skip_blocks=tuple(sorted(skipped)),
        fp8_attention=fp8_attention,
    )
    return replace(found, quantisation=chosen)


def selected(checkpoint: Checkpoint, without: Collection[str] = ()) -> tuple[str, ...]:
    """Return the names of a bundle's components, in the order of the table.

    Without an optional one no reference image can be read, so all components that reference images need are left out.

    Raises:
        UsageError: a component of `without` is not optional.
    """
    optional = [row.name for row in COMPONENTS.values() if row.optional]
    wrong = [name for name in without if name not in optional]
    if wrong:
        raise UsageError(f"--without {wrong[0]}: only {' and '.join(optional)} can be left out")
    absent = FOR_REFERENCE_IMAGES if without else ()
    return tuple(name for name in components(checkpoint) if name not in absent)


def networks(names: Collection[str]) -> tuple[str, ...]:
    """The networks of components."""
    return tuple(dict.fromkeys(COMPONENTS[name].network for name in names))
