"""Kernels and traffic of one block of the step at the released width, for every spelling that was tried.

    python -m benchmarks.rtx.spellings --work out/bench/spellings --output benchmarks/results/spellings.json

Two blocks with random weights, 4,096 tokens behind 4,096 of the prefix, one profile. Every spelling is built with
TensorRT for RTX, without a GPU, and counted in the compiler's account; nothing is run. With weights inside a build
takes half a minute and 3 GB. `--only WORD` builds the spellings whose name has the word, and keeps the other rows of
the output.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from benchmarks.common.environment import environment
from benchmarks.common.paths import ROOT
from benchmarks.common.synthetic_scales import synthetic_calibration
from benchmarks.common.wide_checkpoint import write_wide_checkpoint
from benchmarks.rtx import rewrites
from benchmarks.rtx.rewrites import Rewrite
from qwen_image_engine.calibration.quantise.network import quantised_networks
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.plans.profile import Range, profile
from qwen_image_engine.engines.tensorrt.build.job import BuildJob, BuildOptions, ExpectedFusions, Weights
from qwen_image_engine.engines.tensorrt.build.launch import run_build
from qwen_image_engine.engines.tensorrt.kernels.block import middle_block
from qwen_image_engine.engines.tensorrt.kernels.kernel import Kernel, kernels_of
from qwen_image_engine.engines.tensorrt.kernels.layer import read_layers
from qwen_image_engine.engines.tensorrt.kernels.ports import Ports
from qwen_image_engine.export.bundle.network_folder import write_network
from qwen_image_engine.export.lowering import Passes
from qwen_image_engine.export.passes.gates_apart import GatesApart
from qwen_image_engine.export.passes.joint_square_mean import JointSquareMean
from qwen_image_engine.export.targets import choose_target
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import empty_network
from qwen_image_engine.reference.networks.transformer import Transformer
from qwen_image_engine.runtime.bundle.bound_lists import bindable_weights
from qwen_image_engine.runtime.bundle.manifest_entries import ComponentEntry

HEADS, BLOCKS = 32, 2
SIZES = {"batch": Range.of(1), "tokens": Range(4, 4096, 4096), "prefix": Range(1, 4096, 13817)}
ADA, BLACKWELL = "8.9", "12.0"
NO_PASSES: Passes = ()


@dataclass(frozen=True)
class Spelling:
    """A way to spell a block.

    Attributes:
        name: name in the table of docs/performance.md.
        precision: precision of the export.
        kept: whether exports have it, in words.
        without: passes that are left out of the export's.
        rewrite: rewrite of the exported graph.
        weights: places of the weights to build with.
        capabilities: compute capabilities to build for.
        fp8_attention: whether attention and the prefix's keys and values are in FP8.
    """

    name: str
    precision: str
    kept: str
    without: Passes = NO_PASSES
    rewrite: Rewrite = rewrites.exported
    weights: tuple[Weights, ...] = ("inside",)
    capabilities: tuple[str, ...] = (ADA, BLACKWELL)
    fp8_attention: bool = False


BOTH: tuple[Weights, ...] = ("inside", "bound")
_trial = dict[str, Any](precision="bf16", kept="no", weights=("bound",))
SPELLINGS = (
    Spelling("RMSNormalization of queries and of keys", "bf16", "no", (JointSquareMean, GatesApart)),
    Spelling("one mean of squares for both", "bf16", "with `--merged-gates`", (GatesApart,)),
    Spelling("and the MLP's second product reads twice its input: as exported", "bf16", "yes", weights=BOTH),
    Spelling("its input negated instead of doubled", "bf16", "no", rewrite=rewrites.negated, capabilities=(BLACKWELL,)),
    Spelling("RMSNormalization", "fp8", "no", (JointSquareMean,)),
    Spelling("one mean of squares: as exported", "fp8", "yes", weights=BOTH),
    Spelling(
        "and FP8 attention, with keys and values of the prefix in FP8",
        "fp8",
        "with `--fp8-attention`",
        weights=BOTH,
        fp8_attention=True,
    ),
    Spelling("one mean of squares: as exported", "int8", "yes", weights=BOTH),
    Spelling("and values in the product of queries and keys", rewrite=rewrites.values_joined, **_trial),
    Spelling("both products of the MLP as one", "bf16", "no", (GatesApart,), rewrites.gates_joined, ("bound",)),
    Spelling("keys and values bound whole", rewrite=rewrites.keys_and_values_whole, **_trial),
    Spelling("keys and values bound whole, by heads", rewrite=rewrites.keys_and_values_whole_by_heads, **_trial),
    Spelling("values alone bound whole, by heads", rewrite=rewrites.values_whole_by_heads, **_trial),
    Spelling("keys and values scattered into a whole cache", rewrite=rewrites.keys_and_values_scattered, **_trial),
    Spelling("keys and values concatenated side by side", rewrite=rewrites.keys_beside_values, **_trial),
    Spelling("output projection by Einsum over heads", rewrite=rewrites.output_by_einsum, **_trial),
    Spelling("the norm adds the residual itself", rewrite=rewrites.residual_in_norm, **_trial),
    Spelling("the norm by hand, in one pass", rewrite=rewrites.norm_in_one_pass, **_trial),
    Spelling("one tanh for both gates", rewrite=rewrites.one_tanh, **_trial),
    Spelling("latents, time and velocity in bf16", rewrite=rewrites.ends_in_bf16, **_trial),
)


def export(checkpoint: Checkpoint, spelling: Spelling, folder: Path) -> tuple[Path, ComponentEntry]:
    """Export the step with the passes of a spelling, and return its graph and its entry."""
    target = choose_target("tensorrt", spelling.precision, fp8_attention=spelling.fp8_attention)
    passes = tuple(item for item in target.passes() if item not in spelling.without)
    target = replace(target, passes=lambda: passes)
    scales = None
    if target.quantisation is not None:
        network = empty_network(checkpoint, "transformer")
        assert isinstance(network, Transformer)
        scales = synthetic_calibration(network)
    quantised = quantised_networks(checkpoint, target.quantisation, scales)["transformer"]
    weights = "link" if target.quantisation is None else "copy"
    written = write_network(checkpoint, ["step"], target, quantised, weights, folder, {}, lambda what, count: None)
    entry = written.components["step"]
    return folder / entry.model, entry


def build(spelling: Spelling, graph: Path, entry: ComponentEntry, weights: Weights, capability: str) -> dict[str, Any]:
    """Build the rewritten graph for one capability, and return the row of its block."""
    model = ir.load(graph)
    contract = spelling.rewrite(model, entry.contract)
    sizes = {**SIZES, "tokens": Range(31, 4096, 4096)} if spelling.fp8_attention else SIZES
    path = graph.with_name("rewritten.onnx")
    ir.save(model, path)
    names = tuple(node.name for node in model.graph if node.op_type == "Attention" and node.name)
    job = BuildJob(
        component="step",
        builder="tensorrt-rtx",
        compute_capabilities=(capability,),
        model=str(path),
        plan=str(path.with_suffix(".plan")),
        timing_cache=None,
        profiles=(profile(contract, "1024x1024", sizes),),
        options=BuildOptions(weights=weights),
        promise=ExpectedFusions(0, 0, len(entry.fp8_attention), names),
        softmax_scale=entry.softmax_scale,
        layers=str(path.with_suffix(".layers.json")),
    )
    row = {
        "precision": spelling.precision,
        "spelling": spelling.name,
        "kept": spelling.kept,
        "weights": weights,
        "compute_capability": capability,
    }
    began = time.perf_counter()
    try:
        run_build(job, lambda doing: None)
    except QwenImageError as error:
        return {**row, "error": str(error)}
    seconds = time.perf_counter() - began
    found, layers = read_layers(Path(job.layers).read_text(encoding="utf-8"))
    bound = bindable_weights(graph.parents[1], str(path.relative_to(graph.parents[1]))) if weights == "bound" else ()
    ports = Ports.at(contract, {name: size.best for name, size in SIZES.items()}, {"batch": 1})
    kernels, known = kernels_of(found, layers, ports, frozenset(weight.name for weight in bound))
    return {**row, **numbers(kernels, known), "seconds": round(seconds, 1)}


def numbers(kernels: Sequence[Kernel], known: bool) -> dict[str, Any]:
    """Return kernels and bytes of the middle block, and the number of all kernels."""
    block = middle_block(kernels)
    assert block is not None
    products = [kernel for kernel in block.kernels if kernel.kind == "product"]
    attentions = [kernel for kernel in block.kernels if kernel.kind == "attention"]
    others = [kernel for kernel in block.kernels if kernel.kind not in ("product", "attention")]
    return {
        "sizes_known": known,
        "products": len(products),
        "attentions": len(attentions),
        "others": len(others),
        "bytes_of_others": moved(others),
        "bytes": moved(block.kernels),
        "least_bytes": block.least_bytes,
        "kernels_of_the_plan": len(kernels),
        "others_of_the_block": [
            {"kind": kernel.kind, "read": kernel.read, "written": kernel.written} for kernel in others
        ],
    }


def moved(kernels: Sequence[Kernel]) -> int:
    """Return the bytes of activations that kernels read and write."""
    return sum((kernel.read or 0) + (kernel.written or 0) for kernel in kernels)


def measure(work: Path, only: Sequence[str], done: Callable[[dict[str, Any]], None]) -> None:
    """Build every chosen spelling, and hand each row to `done`."""
    folder = work / "checkpoint"
    if not folder.is_dir():
        write_wide_checkpoint(folder, HEADS, BLOCKS)
    checkpoint = Checkpoint.open(folder)
    exports: dict[tuple[str, Passes, bool], tuple[Path, ComponentEntry]] = {}
    for spelling in SPELLINGS:
        if only and not any(word in f"{spelling.precision} {spelling.name}" for word in only):
            continue
        key = (spelling.precision, spelling.without, spelling.fp8_attention)
        if key not in exports:
            place = work / f"graphs-{len(exports)}"
            place.mkdir()
            exports[key] = export(checkpoint, spelling, place)
        for weights in spelling.weights:
            for capability in spelling.capabilities:
                done(build(spelling, *exports[key], weights, capability))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a new folder with 8 GB free")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "spellings.json")
    parser.add_argument(
        "--only", nargs="+", default=(), help="spellings whose precision and name have one of these words"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = []
    if options.only and options.output.is_file():
        rows = json.loads(options.output.read_text(encoding="utf-8"))["rows"]

    order = {(spelling.precision, spelling.name): index for index, spelling in enumerate(SPELLINGS)}

    def done(row: dict[str, Any]) -> None:
        key = ("precision", "spelling", "weights", "compute_capability")
        rows[:] = [item for item in rows if [item[name] for name in key] != [row[name] for name in key]]
        rows.append(row)
        rows.sort(key=lambda item: order[item["precision"], item["spelling"]])
        print(json.dumps({name: value for name, value in row.items() if name != "others_of_the_block"}), flush=True)
        document = {"rows": rows, "tensorrt_rtx": version("tensorrt-rtx"), **environment()}
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    measure(options.work, options.only, done)


if __name__ == "__main__":
    main()
