"""The table of targets: everything that depends on a target with a precision, one row for each pair.

This module imports neither torch nor onnx-ir, because the command reads its flags from the table. Passes and rules are
entry strings, imported when they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from qwen_image_engine.calibration.rules.quantisation import (
    FP8_STATIC,
    HIGH,
    INT8_PER_TOKEN,
    INT8_STATIC,
    Quantisation,
    Rule,
)
from qwen_image_engine.calibration.rules.recipe_file import QuantisationRecipe
from qwen_image_engine.engines.backends import BACKENDS, backends_for
from qwen_image_engine.engines.core.components import COMPONENTS, FOR_REFERENCE_IMAGES, components_with
from qwen_image_engine.engines.core.entries import load_entry
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.export.thresholds import (
    CPU_FP32,
    CPU_INT8,
    CUDA_BF16,
    CUDA_FP8,
    CUDA_FP16,
    TENSORRT_BF16,
    TENSORRT_FP8,
    TENSORRT_INT8,
    TWIN_FP8,
    TWIN_INT8,
    Thresholds,
    on_engine,
)

if TYPE_CHECKING:
    from qwen_image_engine.export.lowering import Passes, QuantisingPasses
    from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint


@dataclass(frozen=True)
class Target:
    """A row of the table of targets: passes, dtypes, quantisation and limits of a target in a precision.

    Attributes:
        name: the word that `--target` takes.
        precision: precision of the bundle, as the manifest names it.
        dtype: torch's name of the dtype of weights and arithmetic that are not quantised, and of keys and values.
        thresholds: limits of `verify` by row.
        passes: loader of the passes that run, in order, on every component.
        merging: loader of the passes that `--merged-gates` runs in their place; None if the target keeps no products
            apart.
        quantisation: rules that choose the quantised linears and their precision; None if no linear is quantised.
        quantising: loader of the passes that run after the others if anything is quantised.
        rules: loader of the names of the structural rules that `inspect --check` checks; None if the target has none.
        audited: whether ONNX Runtime has to run every quantised linear as a product of integers.
        in_float32: networks that are in float32, whatever `dtype` is.
        may_quantise_attention: whether `--fp8-attention` is allowed.
        twin: whether the row only shows, on a CPU, the cost of another target's quantisation.
    """

    name: str
    precision: str
    dtype: str
    thresholds: Thresholds
    passes: Callable[[], Passes]
    merging: Callable[[], Passes] | None = None
    quantisation: Quantisation | None = None
    quantising: Callable[[], QuantisingPasses] = tuple
    rules: Callable[[], Collection[str]] | None = None
    audited: bool = False
    in_float32: frozenset[str] = frozenset()
    may_quantise_attention: bool = False
    twin: bool = False

    @property
    def engines(self) -> tuple[str, ...]:
        """Names of the backends that run the graphs."""
        return backends_for(self.name)

    @property
    def on_gpu(self) -> bool:
        """Whether the graphs run on a GPU."""
        return any(BACKENDS[name].device == "gpu" for name in self.engines)

    @property
    def runs_plans(self) -> bool:
        """Whether `build` makes plans of the graphs."""
        return any(BACKENDS[name].create is None for name in self.engines)

    def dtype_of(self, network: str) -> str:
        """Return torch's name of the dtype of the unquantised parts of a network, one of `NETWORKS`."""
        return "float32" if network in self.in_float32 else self.dtype


def _entry(entry: str) -> Callable[[], Any]:
    return partial(load_entry, entry)


# ONNX Runtime has bf16 kernels of Pad, ReduceMean and DepthToSpace neither on CUDA nor on the CPU, where it would put
# them; in fp16 the released VAE is said to give values that are not finite.
_CUDA_FLOAT32 = frozenset({"vae"})

_cpu = partial(Target, "cpu", dtype="float32", passes=_entry("export.lowering:CPU"))
_cuda = partial(
    Target,
    "cuda",
    passes=_entry("export.lowering:CUDA"),
    rules=_entry("export.checks.tensorrt_rules:SHARED_WITH_CUDA"),
    in_float32=_CUDA_FLOAT32,
)
_tensorrt = partial(
    Target,
    "tensorrt",
    dtype="bfloat16",
    passes=_entry("export.lowering:TENSORRT"),
    rules=_entry("export.checks.tensorrt_rules:RULES"),
)
_static = partial(_tensorrt, quantising=_entry("export.lowering:STATIC"), may_quantise_attention=True)
_twin = partial(
    Target,
    "tensorrt-twin",
    dtype="float32",
    passes=_entry("export.lowering:TENSORRT"),
    quantising=_entry("export.lowering:STATIC_TWIN"),
    may_quantise_attention=True,
    twin=True,
)

TARGETS: Mapping[tuple[str, str], Target] = {
    (row.name, row.precision): row
    for row in (
        _cpu("fp32", thresholds=CPU_FP32),
        _cpu(
            "int8",
            thresholds=CPU_INT8,
            quantisation=INT8_PER_TOKEN,
            quantising=_entry("export.lowering:INT8_PER_TOKEN"),
            audited=True,
        ),
        _cuda("bf16", dtype="bfloat16", thresholds=CUDA_BF16),
        _cuda("fp16", dtype="float16", thresholds=CUDA_FP16),
        _cuda(
            "fp8",
            dtype="float16",
            thresholds=CUDA_FP8,
            quantisation=FP8_STATIC,
            quantising=_entry("export.lowering:STATIC_CUDA"),
        ),
        _tensorrt(
            "bf16",
            thresholds=TENSORRT_BF16,
            passes=_entry("export.lowering:TENSORRT_BF16"),
            merging=_entry("export.lowering:TENSORRT"),
        ),
        _static("fp8", thresholds=TENSORRT_FP8, quantisation=FP8_STATIC),
        _static("int8", thresholds=TENSORRT_INT8, quantisation=INT8_STATIC),
        _twin("fp8", thresholds=TWIN_FP8, quantisation=FP8_STATIC),
        _twin("int8", thresholds=TWIN_INT8, quantisation=INT8_STATIC),
    )
}
"""Rows by target and precision; the first row of a target is its default.

The twin is TensorRT's graph in float32, with the same scales, codes and passes. ONNX Runtime runs it on a CPU. It shows
the accuracy of TensorRT's products of 8 bits before bf16 rounds the rest.
"""

TARGET_NAMES = tuple(dict.fromkeys(row.name for row in TARGETS.values()))
"""Words that `--target` takes."""


def thresholds(target: str, precision: str, engine: str) -> Thresholds | None:
    """Return the thresholds of a bundle on an engine; None if the table has no row for it."""
    row = TARGETS.get((target, precision))
    return None if row is None else on_engine(row.thresholds, engine)


def choose_target(
    target: str,
    precision: str | None,
    *,
    weights: str = "copy",
    rules: QuantisationRecipe | None = None,
    exclude: Sequence[str] = (),
    skip_blocks: Sequence[int] = (),
    fp8_attention: bool = False,
    merged_gates: bool = False,
) -> Target:
    """Return the row of a target and precision, changed by the arguments.

    Args:
        target: name of the target that the graphs are lowered for.
        precision: precision of weights and arithmetic; None for the target's first row.
        weights: "copy" or "link".
        rules: recipe file whose rules replace the row's own; None for the row's own.
        exclude: glob patterns of linears that are not quantised; they come before any rule.
        skip_blocks: blocks of the transformer that are not quantised.
        fp8_attention: whether the transformer's attention is FP8.
        merged_gates: whether a compiler may make one product of the two of a gated MLP.

    Raises:
        UsageError: the table has no row for the target and precision, `weights` is neither "copy" nor "link", or the
            arguments contradict one another.
    """
    if precision is None:  # an unknown target is refused below
        precision = next((row.precision for row in TARGETS.values() if row.name == target), "fp32")
    found = TARGETS.get((target, precision))
    if found is None:
        known = ", ".join(f"--target {target} --precision {precision}" for target, precision in TARGETS)
        raise UsageError(f"cannot export for target {target!r} in precision {precision!r}; known: {known}")
    if weights not in ("copy", "link"):
        raise UsageError(f"weights {weights!r}: expected copy or link")
    if merged_gates:
        if found.merging is None:
            raise UsageError(
                f"--merged-gates with --target {target} --precision {precision}: these graphs keep no products apart; "
                "it goes with --target tensorrt --precision bf16"
            )
        found = replace(found, passes=found.merging)
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
        rules.check(found.quantisation.precisions(), found.quantisation.static, for_gpu=found.runs_plans)
    fp8_attention |= rules is not None and rules.fp8_attention
    if fp8_attention and precision != "fp8":
        raise UsageError(f"FP8 attention in a bundle of precision {precision}: it goes with --precision fp8")
    if fp8_attention and not found.may_quantise_attention:
        raise UsageError(f"FP8 attention with --target {target}: ONNX Runtime has none; it goes with --target tensorrt")
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

    Without an optional component no reference image can be read. So all components that reference images need are left
    out with it.

    Raises:
        UsageError: a component of `without` is not optional.
    """
    optional = [row.name for row in COMPONENTS.values() if row.optional]
    wrong = [name for name in without if name not in optional]
    if wrong:
        raise UsageError(f"--without {wrong[0]}: only {' and '.join(optional)} can be left out")
    absent = FOR_REFERENCE_IMAGES if without else ()
    return tuple(row.name for row in components_with(checkpoint.transformer.attention) if row.name not in absent)


def networks(names: Collection[str]) -> tuple[str, ...]:
    """Return the networks of components, in the order of the components."""
    return tuple(dict.fromkeys(COMPONENTS[name].network for name in names))
