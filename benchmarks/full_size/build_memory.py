"""Host memory of builds with TensorRT for RTX, and scratch memory of the plans, by weights, precision and profiles.

    python -m benchmarks.full_size.build_memory --work /tmp/build-memory --output benchmarks/results/build-memory.json
    python -m benchmarks.full_size.build_memory --work /tmp/build-memory --weights bound --only 32x2 2x32 released \
        --output benchmarks/results/build-memory-bound.json

No GPU is needed. The graphs are those of `shapes`, of transformers of random weights and several widths, and of the
other networks at their released widths with fewer layers. Each plan is built by the build's own process, whose
memory is read fifty times a second; the builder's log says how much scratch memory the largest profile takes.
`engines.plans.build_memory` and `engines.plans.scratch` have the formulas that are fitted to the result.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from benchmarks.common.environment import environment
from benchmarks.common.paths import SHAPES
from qwen_image_engine.engines.core.components import COMPONENTS, FOR_REFERENCE_IMAGES
from qwen_image_engine.engines.core.contract import Contract, split_axis
from qwen_image_engine.engines.plans.entry import Profile
from qwen_image_engine.engines.plans.profile import Range
from qwen_image_engine.engines.tensorrt.build.job import Weights
from qwen_image_engine.runtime.system.memory_use import SAMPLE_S, MemoryUse, highest_resident_bytes
from qwen_image_engine.runtime.text.prompt import MAX_PROMPT_TOKENS, USUAL_PROMPT_TOKENS
from qwen_image_engine.runtime.tools.build.shapes import BuildShapes

SCRATCH = "Total Activation Memory: "
SELF = (sys.executable, "-m", "benchmarks.full_size.build_memory")
ONE = ((1024, 1024),)
LARGE = ((2048, 2048),)
THREE = ((512, 512), *ONE, *LARGE)


@dataclass(frozen=True)
class Build:
    """One way to build every component of a case.

    Attributes:
        sizes: picture sizes; a component that reads pictures has a profile or two for each.
        capabilities: compute capabilities that one plan is built for.
        references: most reference images; with 0, prompts of 200 tokens, else of 1,100.
    """

    sizes: tuple[tuple[int, int], ...]
    capabilities: tuple[str, ...]
    references: int = 3


@dataclass(frozen=True)
class Case:
    """Graphs to build.

    Attributes:
        name: name of the checkpoint: "shapes", "HEADSxBLOCKS" for a transformer of heads of 128 channels, or
            "released" for the other networks.
        precision: precision of the export.
        components: names of the components to build; their network is exported.
        builds: ways to build each of them.
    """

    name: str
    precision: str
    components: tuple[str, ...]
    builds: tuple[Build, ...]


_AMPERE, _ADA, _ALL = ("8.6",), ("8.9",), ("8.6", "8.9", "12.0")
_VAE = ("vae_decoder_mid", "vae_decoder_up", "vae_encoder")
_PASSES = ("prefix", "step")
_ALONE = tuple(Build((size,), _AMPERE, 0) for size in THREE)
CASES = (
    Case("shapes", "bf16", ("text_encoder", "vision", *_PASSES, "prefix_image", *_VAE), (Build(THREE, _AMPERE),)),
    Case("shapes", "fp8", _PASSES, (Build(THREE, _ADA),)),
    Case("8x2", "bf16", _PASSES, (Build(THREE, _AMPERE),)),
    Case("16x2", "bf16", _PASSES, (Build(THREE, _AMPERE), Build(ONE, _AMPERE))),
    Case("32x2", "bf16", ("step",), (Build(THREE, _AMPERE), Build(THREE, _ALL), *_ALONE)),
    Case("32x2", "bf16", ("prefix", "prefix_image"), (Build(ONE, _AMPERE), Build(ONE, _AMPERE, 0))),
    Case("32x2", "fp8", _PASSES, (Build(THREE, _ADA), Build(LARGE, _ADA, 0))),
    Case("32x2", "int8", ("step",), (Build(THREE, _AMPERE), Build(LARGE, _AMPERE, 0))),
    Case("2x32", "bf16", _PASSES, (Build(THREE, _AMPERE),)),
    Case("2x32", "fp8", ("step",), (Build(THREE, _ADA),)),
    Case("released", "bf16", ("text_encoder", "vision"), (Build(ONE, _AMPERE), Build(ONE, _AMPERE, 0))),
    Case("released", "bf16", _VAE, _ALONE),
)


def write_checkpoint(folder: Path, name: str) -> Path:
    """Write the checkpoint of a case if it is not there, and return its folder."""
    from benchmarks.common.wide_checkpoint import write_wide_checkpoint
    from benchmarks.full_size import export_memory

    if name == "shapes":
        return SHAPES
    if not folder.is_dir():
        if name == "released":
            export_memory.write_checkpoint(folder, layers=2)
        else:
            heads, blocks = map(int, name.split("x"))
            write_wide_checkpoint(folder, heads, blocks)
    return folder


def export(case: Case, checkpoint: Path, folder: Path, weights: Weights) -> Iterator[dict[str, Any]]:
    """Export the networks of a case and yield the jobs of all builds as JSON. Call it in a process of its own."""
    from benchmarks.common.synthetic_scales import synthetic_calibration
    from qwen_image_engine.calibration.quantise.network import quantised_networks
    from qwen_image_engine.engines.core.graph.weight_bytes import weight_bytes
    from qwen_image_engine.engines.tensorrt.build.job import BuildJob, BuildOptions
    from qwen_image_engine.export.bundle.network_folder import write_network
    from qwen_image_engine.export.targets import choose_target, networks
    from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
    from qwen_image_engine.reference.components import dims
    from qwen_image_engine.reference.load import load_network
    from qwen_image_engine.reference.networks.transformer import Transformer
    from qwen_image_engine.reference.pipeline import model_facts
    from qwen_image_engine.runtime.bundle.bound_lists import bindable_weights, bound_bytes, bound_count
    from qwen_image_engine.runtime.text.tokenizer import load_tokenizer
    from qwen_image_engine.runtime.tools.build.request import promise
    from qwen_image_engine.runtime.tools.build.shapes import Template, build_profiles

    opened, target = Checkpoint.open(write_checkpoint(checkpoint, case.name)), choose_target("tensorrt", case.precision)
    network = None if target.quantisation is None else load_network(opened, "transformer")
    scales = synthetic_calibration(network) if isinstance(network, Transformer) else None
    quantised = quantised_networks(opened, target.quantisation, scales)
    template, halo = Template.of(load_tokenizer(opened.folder), 3), model_facts(opened).decoder_halo
    for stored in networks(case.components):
        names = [name for name in case.components if COMPONENTS[name].network == stored]
        written = write_network(opened, names, target, quantised[stored], "copy", folder, {}, lambda what, count: None)
        for name, build in ((name, build) for name in names for build in case.builds):
            entry = written.components[name]
            job = BuildJob(
                component=name,
                builder="tensorrt-rtx",
                compute_capabilities=build.capabilities,
                model=str(folder / entry.model),
                plan=str(folder / f"{name}.plan"),
                timing_cache=None,
                profiles=build_profiles(entry.contract, shapes(build, name), template, halo),
                options=BuildOptions(weights=weights),
                promise=promise(entry),
                softmax_scale=entry.softmax_scale,
                layers=str(folder / f"{name}.layers.json"),
            )
            bound = bindable_weights(folder, entry.model) if weights == "bound" else ()
            yield {
                "weight_bytes": weight_bytes(folder / entry.model),
                "bound_weights": bound_count(bound),
                "bound_bytes": bound_bytes(bound),
                "dims": asdict(dims(opened)),
                "axes": axes(entry.contract, job.profiles[-1]),
                "job": job.to_json(),
            }


def shapes(build: Build, component: str) -> BuildShapes:
    """Return the shapes of a build. A component that reads reference images has profiles for one at least."""
    references = max(build.references, component in FOR_REFERENCE_IMAGES)
    tokens = MAX_PROMPT_TOKENS if build.references else USUAL_PROMPT_TOKENS
    return BuildShapes(build.sizes, Range(1, 77, tokens), Range(0, min(1, references), references))


def axes(contract: Contract, profile: Profile) -> dict[str, int]:
    """Return the largest sizes of the axes of a profile's inputs, by symbol."""
    found = {}
    for spec in contract.inputs:
        for axis, size in zip(spec.shape, profile.shapes[spec.name][2], strict=True):
            if isinstance(axis, str):
                factor, name = split_axis(axis)
                found[name] = size // factor
    return found


temporary = partial(tempfile.TemporaryFile, "w+", encoding="utf-8")


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Build a plan, measure it, and delete it."""
    measured, last = measured_build(job)
    Path(job["plan"]).unlink(missing_ok=True)
    return {**measured, "error": None if measured["plan_bytes"] else last.get("error")}


def measured_build(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Build a plan in a process of its own, and return its costs and the process's last message.

    The costs are the plan's bytes, the time, the memory's peaks and the scratch memory.
    """
    began, peak, highest = time.perf_counter(), MemoryUse(0, 0, 0), 0
    with temporary() as lines, temporary() as log:
        process = subprocess.Popen([*SELF, "--worker"], stdin=subprocess.PIPE, stdout=lines, stderr=log, text=True)
        assert process.stdin is not None
        with process.stdin as stdin:
            json.dump(job, stdin)
        while process.poll() is None:
            peak = peak.peak(MemoryUse.of(process.pid))
            highest = max(highest, highest_resident_bytes(process.pid) or 0)
            time.sleep(SAMPLE_S)
        lines.seek(0)
        log.seek(0)
        last = json.loads(lines.read().splitlines()[-1])
        scratch = [int(line.removeprefix(SCRATCH).split()[0]) for line in log if line.startswith(SCRATCH)]
    plan = Path(job["plan"])
    measured = {
        "seconds": round(time.perf_counter() - began, 1),
        "peak_bytes": max(highest, peak.resident_bytes),
        "anonymous_bytes": peak.anonymous_bytes,
        "plan_bytes": plan.stat().st_size if plan.is_file() else 0,
        "scratch_bytes": max(scratch, default=None),
    }
    return measured, last


def work_as_builder() -> int:
    """Run the build's own process, and print what the builder's log says of scratch memory on standard error."""
    from qwen_image_engine.engines.tensorrt.build import worker
    from qwen_image_engine.engines.tensorrt.package import choose

    choose("tensorrt-rtx")
    from qwen_image_engine.engines.tensorrt import bindings

    log = bindings.Log.log

    def heard(self: Any, severity: Any, msg: str) -> None:
        if msg.startswith(SCRATCH):
            print(msg, file=sys.stderr, flush=True)
        log(self, severity, msg)

    bindings.Log.log = heard  # type: ignore[method-assign]
    return worker.main()


def measure(work: Path, cases: tuple[Case, ...], weights: Weights) -> Iterator[dict[str, Any]]:
    """Yield a row for each build, with the weights in that place."""
    for case in cases:
        graphs = work / "graphs"
        shutil.rmtree(graphs, ignore_errors=True)
        graphs.mkdir(parents=True)
        command = [*SELF, "--work", str(work), "--export", str(CASES.index(case)), "--weights", weights]
        exported = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        for line in exported.stdout.splitlines():
            made = json.loads(line)
            job = made["job"]
            row = {
                "checkpoint": case.name,
                "precision": case.precision,
                "component": job["component"],
                "compute_capabilities": job["compute_capabilities"],
                "profiles": len(job["profiles"]),
                "dims": made["dims"],
                "axes": made["axes"],
                "weight_bytes": made["weight_bytes"],
                "bound_weights": made["bound_weights"],
                "bound_bytes": made["bound_bytes"],
                **build(job),
            }
            print(json.dumps(row), file=sys.stderr)
            yield row
        shutil.rmtree(graphs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, help="a folder with 15 GB free")
    parser.add_argument("--output", type=Path, help="the JSON to write")
    parser.add_argument("--only", nargs="+", help="the cases of these checkpoints alone")
    parser.add_argument("--weights", choices=get_args(Weights), default="inside", help="where plans have them")
    parser.add_argument("--export", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        sys.exit(work_as_builder())
    if options.export is not None:
        case = CASES[options.export]
        checkpoint = options.work / f"checkpoint-{case.name}"
        for job in export(case, checkpoint, options.work / "graphs", options.weights):
            print(json.dumps(job))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    cases = tuple(case for case in CASES if options.only is None or case.name in options.only)
    rows = list(measure(options.work, cases, options.weights))
    document = {
        **environment(),
        "tensorrt_rtx": version("tensorrt-rtx"),
        "load_average": os.getloadavg(),
        "runs": rows,
    }
    if options.output is not None:
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
