"""The build of a plan from one graph: parse, keep attention fused, add profiles, build into a file, inspect.

Only the build process imports this module: without a driver TensorRT's objects crash the process that holds them.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection
from pathlib import Path
from typing import cast

import numpy as np

from qwen_image_engine.engines.core.bfloat16 import to_bfloat16
from qwen_image_engine.engines.core.errors import QwenImageError, one_line
from qwen_image_engine.engines.core.files import whole_file
from qwen_image_engine.engines.plans.entry import Profile
from qwen_image_engine.engines.tensorrt.bindings import PRODUCT, Log, made, process_log, trt
from qwen_image_engine.engines.tensorrt.build.account import file_text, is_part, layers_of_log, scratch_of_log
from qwen_image_engine.engines.tensorrt.build.audit import Network, audit, check_audit, check_parsed
from qwen_image_engine.engines.tensorrt.build.inspector import node_names
from qwen_image_engine.engines.tensorrt.build.job import BuildJob, BuildResult
from qwen_image_engine.engines.tensorrt.build.onnx_weights import weights_left_out
from qwen_image_engine.engines.tensorrt.build.parse import parse_graph
from qwen_image_engine.engines.tensorrt.build.plan_writer import PlanWriter
from qwen_image_engine.engines.tensorrt.build.progress import Monitor, Progress
from qwen_image_engine.engines.tensorrt.build.timing_cache import keep_timings, read_timings
from qwen_image_engine.engines.tensorrt.rtx import set_compute_capabilities

_VALUES = 2
"""Index of the values among an attention's inputs."""


def build(job: BuildJob, progress: Progress) -> BuildResult:
    """Build the engine, write its plan and the compiler's account of it, and compare the account with the promise.

    Args:
        job: the job to build.
        progress: called with phase, steps done and steps; returns whether to go on.

    Raises:
        QwenImageError: the graph cannot be parsed or built, or the plan has less than the graph promises.
        OSError: a file cannot be written.
    """
    log = process_log()
    warnings: list[str] = []
    with log.keeping(is_part) as messages:
        written, sha256, network = _write_plan(job, log, progress, warnings)
    # Builder, parser and network are gone: the inspector needs the memory that they held.
    if PRODUCT.needs_gpu:
        inspected, scratch = _inspected(Path(job.plan), log)
    else:
        inspected, scratch = layers_of_log(messages), scratch_of_log(messages)
    profiles = tuple(item.name for item in job.profiles)
    layers = Path(job.layers)
    with whole_file(layers) as file:  # for a plan that is refused, too
        file.write(file_text(inspected, network.names(profiles)).encode())
    found = audit(inspected, network, len(profiles))
    check_audit(job.component, dict(zip(profiles, found, strict=True)), network, job.promise, layers)
    return BuildResult(
        written,
        sha256,
        min(item.fused_attentions for item in found),
        min(item.fp8_products for item in found),
        min(item.int8_products for item in found),
        scratch if len(scratch) == len(profiles) else (),
        tuple(warnings),
    )


def _write_plan(job: BuildJob, log: Log, progress: Progress, warnings: list[str]) -> tuple[int, str, Network]:
    builder = made("builder", log, lambda: trt.Builder(log))
    network = made("network", log, builder.create_network)  # strongly typed, as all are in 11
    parser = made("parser", log, lambda: trt.OnnxParser(network, log))
    bound = parse_graph(parser, job, log)
    # TensorRT refers to a constant's numbers until the engine is built, and to weight files that the parser maps; so
    # both live as long as this call.
    softmax = SoftmaxScale(job.softmax_scale) if job.softmax_scale is not None else None
    found = _prepare_attention(network, job.promise.attentions, softmax)
    check_parsed(job.component, found, job.promise)
    if job.options.strip_weights:
        _leave_out_weights(network, job, warnings)
    monitor = Monitor(progress)
    config = _config(builder, network, job, bound, monitor, log)
    cache = None if job.timing_cache is None else read_timings(config, Path(job.timing_cache), warnings)
    writer = PlanWriter(Path(job.plan))
    log.clear()
    try:
        built = builder.build_serialized_network_to_stream(network, config, writer)
    finally:
        sha256 = writer.close()
    if not built:
        raise QwenImageError(
            f"{job.component}: {PRODUCT.text} cannot build it: {log.errors()}; where memory ran out, build for smaller "
            "sizes (--profile), with --weight-streaming, or with a limit to scratch memory (--workspace)"
        )
    if job.timing_cache is not None:
        keep_timings(cache, Path(job.timing_cache), warnings)
    return writer.bytes, sha256, found


def _prepare_attention(
    network: trt.INetworkDefinition, fused: Collection[str], softmax: SoftmaxScale | None
) -> Network:
    """Keep the attentions `fused` whole, give attentions that read FP8 their softmax scale, and return the nodes.

    TensorRT must not try unfused kernels, which might not fit into the GPU's memory: it fails where there is no fused
    one. TensorRT for RTX runs nothing, and fails without the name of the attention; its account has the names.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    from_codes = {layer.get_output(0).name for layer in layers if layer.type == trt.LayerType.DEQUANTIZE}
    kept: list[str] = []
    others: list[str] = []
    in_fp8: list[str] = []
    for layer in layers:
        if layer.type != trt.LayerType.ATTENTION_INPUT:
            continue
        layer.__class__ = trt.IAttentionInputLayer  # the bindings give ILayer; this is how they name another class
        attention = cast(trt.IAttentionInputLayer, layer).attention
        name = _node(attention.metadata, attention.name or layer.name)
        attention.decomposable = name not in fused or not PRODUCT.needs_gpu
        is_whole = not attention.decomposable or not PRODUCT.needs_gpu  # the setter may refuse in silence
        is_kept = name in fused and is_whole and attention.mask is None
        (kept if is_kept else others).append(name)
        # The parser multiplies queries and keys by the square root of their scale, be it 1: values alone are the
        # graph's own tensor.
        if (
            softmax is not None
            and attention.get_input(_VALUES).name in from_codes
            and softmax.give_to(attention, network)
        ):
            in_fp8.append(name)
    products = {
        _node(item.metadata, item.name): any(item.get_input(index).name in from_codes for index in range(2))
        for item in layers
        if item.type == trt.LayerType.MATRIX_MULTIPLY
    }
    return Network(
        attentions=kept,
        products=[*products],
        nodes={_node(item.metadata, item.name) for item in layers},
        from_codes=[name for name, reads_codes in products.items() if reads_codes],
        fp8_attentions=in_fp8,
        other_attentions=others,
    )


def _leave_out_weights(network: trt.INetworkDefinition, job: BuildJob, warnings: list[str]) -> None:
    names = weights_left_out(Path(job.model))
    kept = [name for name in names if not network.mark_weights_refittable(name)]
    if len(kept) == len(names):
        raise QwenImageError(
            f"{job.component}: {PRODUCT.text}'s parser knows none of {len(names)} weights by its name, so a plan "
            "cannot be without them; build without --strip-weights"
        )
    if kept:
        warnings.append(f"{job.component}: {len(kept)} of {len(names)} weights stay in the plan: {', '.join(kept)}")


def _config(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    job: BuildJob,
    bound: Collection[str],
    monitor: trt.IProgressMonitor,
    log: Log,
) -> trt.IBuilderConfig:
    config = made("configuration", log, builder.create_builder_config)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the audit reads it
    config.progress_monitor = monitor
    config.clear_flag(trt.BuilderFlag.TF32)  # what the graph keeps in float32 has a reason
    # Scratch memory by the shapes of a call, which are mostly far below what a profile allows.
    config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
    if job.compute_capabilities:
        set_compute_capabilities(config, job.component, job.compute_capabilities, log)
    if job.options.strip_weights:
        # Without the second all weights are left out, those too that the parser makes (epsilons, biases of zeros) and
        # that its refitter does not know afterwards.
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
    if job.options.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if job.options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.options.workspace_bytes)
    # Shapes of weights are static, so no profile has them.
    inputs = {network.get_input(index).name for index in range(network.num_inputs)}.difference(bound)
    for item in job.profiles:
        if config.add_optimization_profile(_profile(builder, item, inputs, job, log)) < 0:
            raise QwenImageError(
                f"{job.component}: {PRODUCT.text} does not take the profile {item.name}: {item.shapes}"
            )
    return config


def _profile(
    builder: trt.Builder, item: Profile, inputs: Collection[str], job: BuildJob, log: Log
) -> trt.IOptimizationProfile:
    if inputs != set(item.shapes):
        raise QwenImageError(
            f"{job.component}: {job.model} has the inputs {sorted(inputs)}, its contract {sorted(item.shapes)}; "
            "export the bundle again"
        )
    profile = made("optimization profile", log, builder.create_optimization_profile)
    for name, (least, best, largest) in item.shapes.items():
        try:
            profile.set_shape(name, trt.Dims(least), trt.Dims(best), trt.Dims(largest))
        except RuntimeError as error:
            raise QwenImageError(
                f"{job.component}: {PRODUCT.text} does not take {name} of {least}, {best} and {largest} into "
                f"the profile {item.name}: {log.errors()} ({one_line(error)})"
            ) from error
    return profile


def _inspected(plan: Path, log: Log) -> tuple[str, tuple[int, ...]]:
    """Return the inspector's JSON and the scratch bytes by profile of the plan in a file, mapped and never read."""
    log.clear()
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        runtime = made("runtime", log, lambda: trt.Runtime(log))
        engine = runtime.deserialize_cuda_engine(mapped)
    if engine is None:
        raise QwenImageError(f"{plan}: {PRODUCT.text} does not load what it built: {log.errors()}")
    profiles = range(engine.num_optimization_profiles)
    scratch = tuple(engine.get_device_memory_size_for_profile_v2(index) for index in profiles)
    inspector = made("inspector", log, engine.create_engine_inspector)
    inspected = made("account of it", log, lambda: inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return inspected, scratch


def _node(metadata: str, name: str) -> str:
    """Return the ONNX node that a layer was made from."""
    return next(iter(node_names(metadata or "")), name)


class SoftmaxScale:
    """A bfloat16 number whose bytes TensorRT refers to, so the object must live until the engine is built."""

    def __init__(self, scale: float) -> None:
        self.bits = to_bfloat16(np.array([scale], np.float32))
        self.weights = trt.Weights(trt.bfloat16, self.bits.ctypes.data, 1)

    def give_to(self, attention: trt.IAttention, network: trt.INetworkDefinition) -> bool:
        """Set this scale and FP8 on the probabilities of an attention of `network`; return whether TensorRT takes both.

        TensorRT's setters refuse without an error.
        """
        attention.normalization_quantize_scale = network.add_constant(trt.Dims(()), self.weights).get_output(0)
        attention.normalization_quantize_to_type = trt.fp8
        return (
            attention.normalization_quantize_scale is not None and attention.normalization_quantize_to_type == trt.fp8
        )
