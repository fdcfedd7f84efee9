"""Plans of the whole model at the released size with TensorRT for RTX, on random weights: seconds, memory, bytes.

    python -m benchmarks.full_size.run make DIR                    # 33 GB
    python -m benchmarks.full_size.build_whole DIR --only bf16     # DIR-tensorrt-bf16, linked
    python -m benchmarks.full_size.build_whole DIR --only fp8      # DIR-tensorrt-fp8, 7 GB, and that

No GPU is needed. Each plan is built as `qwen-image build` builds it, in a process of its own whose build process is
measured too. The compiler's accounts say what the plans hold. Rows replace those of the same build in the result
file. Scales of FP8 are synthetic: they decide numbers, not kernels.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS
from benchmarks.full_size.build_memory import measured_build
from benchmarks.full_size.run import bundle_of
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.plans.build_memory import build_memory_bytes
from qwen_image_engine.engines.tensorrt.build.job import BuildJob, BuildOptions, BuildResult, Weights
from qwen_image_engine.engines.tensorrt.build.launch import Watch
from qwen_image_engine.runtime.bundle.bound_lists import bound_bytes, bound_count
from qwen_image_engine.runtime.system.memory_use import highest_resident_bytes
from qwen_image_engine.runtime.tools.build.shapes import DEFAULT_SIZES, BuildShapes

SELF = (sys.executable, "-m", "benchmarks.full_size.build_whole")
ONE = ((1024, 1024),)
_PASSES = ("prefix", "prefix_image", "step")


@dataclass(frozen=True)
class Build:
    """The build of one plan.

    Attributes:
        precision: precision of the bundle.
        component: name of the component.
        capability: compute capability.
        sizes: picture sizes of the profiles.
        weights: place of the weights.
    """

    precision: str
    component: str
    capability: str
    sizes: tuple[tuple[int, int], ...] = DEFAULT_SIZES
    weights: Weights = "bound"

    @property
    def key(self) -> dict[str, Any]:
        """Fields of its row in the result file that no other row has."""
        return {**asdict(self), "sizes": [f"{width}x{height}" for width, height in self.sizes]}


_BOTH = (("bf16", "12.0"), ("fp8", "12.0"), ("fp8", "8.9"))
BUILDS = (
    Build("bf16", "text_encoder", "12.0"),
    *(Build(precision, name, capability) for precision, capability in _BOTH for name in _PASSES),
    *(Build(precision, "step", capability, ONE) for precision, capability in _BOTH[:2]),
    *(Build("bf16", name, "12.0") for name in ("vision", "vae_decoder_mid", "vae_decoder_up", "vae_encoder")),
    *(Build(precision, name, "12.0", ONE, "inside") for precision in ("bf16", "fp8") for name in _PASSES),
    Build("bf16", "text_encoder", "12.0", ONE, "inside"),
)


def export(checkpoint: Path, precision: str) -> None:
    """Export the checkpoint in bf16, linked; in FP8 the transformer alone, in a copy of that bundle made of links."""
    import torch

    from benchmarks.common.synthetic_scales import synthetic_calibration
    from qwen_image_engine.calibration.quantise.network import quantised_networks
    from qwen_image_engine.export.bundle import export_bundle
    from qwen_image_engine.export.bundle.network_folder import write_network
    from qwen_image_engine.export.targets import choose_target
    from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
    from qwen_image_engine.reference.networks.transformer import Transformer
    from qwen_image_engine.runtime.bundle.manifest import read_manifest, write_manifest

    opened, target = Checkpoint.open(checkpoint), choose_target("tensorrt", precision)
    wide, bundle = (bundle_of(checkpoint, "tensorrt", name) for name in ("bf16", precision))
    if not wide.is_dir():
        export_bundle(opened, wide, target="tensorrt", precision="bf16", weights="link")
    if precision == "bf16":
        return
    with torch.device("meta"):  # names and sizes of its linears are all that is read
        network = Transformer(opened.transformer)
    quantised = quantised_networks(opened, target.quantisation, synthetic_calibration(network))["transformer"]
    others = shutil.ignore_patterns("transformer", "plans", "manifest.json")
    shutil.copytree(wide, bundle, copy_function=os.link, ignore=others)
    written = write_network(opened, _PASSES, target, quantised, "copy", bundle, {}, lambda what, count: None)
    manifest = read_manifest(wide)
    kept = {name: file for name, file in manifest.files.items() if (bundle / name).is_file()}
    components = {**manifest.components, **written.components}
    files = {**kept, **written.describe_files()}
    write_manifest(bundle, replace(manifest, precision=precision, components=components, files=files, plans={}))


def build(bundle: Path, wanted: Build) -> dict[str, Any]:
    """Build a plan into a bundle, and return its row. Call it in a process of its own."""
    from qwen_image_engine.runtime.tools.build.build import build_bundle
    from qwen_image_engine.runtime.tools.build.weight_hashes import WeightHashes

    measured: dict[str, Any] = {}
    hashed = WeightHashes.hashed

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        found = hashed(*arguments)
        measured["hash_seconds"] = round(time.perf_counter() - began, 1)
        return found

    def run(job: BuildJob, watch: Watch) -> BuildResult:
        figures, last = measured_build(job.to_json())
        measured.update(figures, profiles=len(job.profiles), attentions=len(job.promise.attentions))
        if "result" not in last:
            raise QwenImageError(str(last.get("error")))
        if job.options.weights == "bound":
            measured["packed_bytes"] = len(lzma.compress(Path(job.plan).read_bytes(), preset=1))
        return BuildResult.from_json(last["result"])

    for path in (bundle / "plans").glob(f"{wanted.component}-*.plan"):
        path.unlink()  # it would be reused
    began, error, plan = time.perf_counter(), None, {}
    try:
        with patch.object(WeightHashes, "hashed", timed):
            (built,) = build_bundle(
                bundle,
                BuildShapes(wanted.sizes),
                BuildOptions(weights=wanted.weights),
                engine="tensorrt-rtx",
                compute_capabilities=(wanted.capability,),
                only=(wanted.component,),
                run=run,
            )
        plan = plan_facts(bundle, wanted.component, built.entry)
    except QwenImageError as refused:
        error = str(refused)
    own = highest_resident_bytes() or 0
    return {
        **wanted.key,
        "command_seconds": round(time.perf_counter() - began, 1),
        "compile_seconds": measured.pop("seconds", None),
        **measured,
        "command_bytes": own,
        **plan,
        **predicted(bundle, wanted),
        "error": error,
    }


def plan_facts(bundle: Path, component: str, entry: Any) -> dict[str, Any]:
    """Return what a plan has: bound weights, fused attentions, products in FP8, kernels of each profile."""
    from qwen_image_engine.runtime.tools.kernels.count import count_kernels

    began = time.perf_counter()
    report = count_kernels(bundle)
    seconds = time.perf_counter() - began
    return {
        "bound_weights": bound_count(entry.bound),
        "bound_bytes": bound_bytes(entry.bound),
        "fused_attentions": entry.fused_attentions,
        "fp8_products": entry.fp8_products,
        "account_bytes": (bundle / entry.layers).stat().st_size,
        "count_seconds": round(seconds, 1),
        "kernels": {
            item.profile: {
                "all": item.whole.total.kernels,
                "block": None if item.block is None else item.block.part.total.kernels,
                "blocks": None if item.block is None else item.block.blocks,
                "alike": None if item.block is None else item.block.alike,
            }
            for item in report.profiles
            if item.file == entry.file
        },
    }


def predicted(bundle: Path, wanted: Build) -> dict[str, Any]:
    """Return the weights of a graph, and the memory that the build's own check expects."""
    from qwen_image_engine.engines.core.graph.weight_bytes import weight_bytes
    from qwen_image_engine.runtime.bundle.bound_lists import bindable_weights
    from qwen_image_engine.runtime.bundle.manifest import read_manifest

    model = read_manifest(bundle).components[wanted.component].model
    weights = weight_bytes(bundle / model)
    bound = bindable_weights(bundle, model) if wanted.weights == "bound" else ()
    return {
        "weight_bytes": weights,
        "predicted_bytes": build_memory_bytes(weights - bound_bytes(bound), bound_count(bound)),
    }


def child(*arguments: object) -> str:
    command = [*SELF, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def write(output: Path, row: dict[str, Any], key: dict[str, Any]) -> None:
    """Write a row into the result file, in the place of an older one of the same build."""
    document = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    kept = [old for old in document.get("runs", []) if {name: old[name] for name in key} != key]
    document = {"runs": [*kept, row], **environment()}
    output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="DIR", help="the checkpoint; bundles go beside it")
    parser.add_argument("--only", default="", metavar="TEXT,…", help="builds with all of these, such as fp8,step,bound")
    parser.add_argument("--output", type=Path, default=RESULTS / "full-size-build.json")
    parser.add_argument("--build", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--export", choices=("bf16", "fp8"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    checkpoint = options.checkpoint.absolute()
    if options.export is not None:
        export(checkpoint, options.export)
        return
    if options.build is not None:
        wanted = BUILDS[options.build]
        print(json.dumps(build(bundle_of(checkpoint, "tensorrt", wanted.precision), wanted)))
        return
    for index, wanted in enumerate(BUILDS):
        words = {wanted.precision, wanted.component, wanted.capability, wanted.weights, f"{len(wanted.sizes)}-size"}
        if not words.issuperset(filter(None, options.only.split(","))):
            continue
        if not bundle_of(checkpoint, "tensorrt", wanted.precision).is_dir():
            child(checkpoint, "--export", wanted.precision)
        row = json.loads(child(checkpoint, "--build", index))
        print(json.dumps(row), file=sys.stderr)
        write(options.output, row, wanted.key)


if __name__ == "__main__":
    main()
