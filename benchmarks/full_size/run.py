"""The whole toolchain at the released size, on random weights: cost of each stage, compared with predictions.

    python -m benchmarks.full_size.run make DIR --turbo        # 33 GB
    python -m benchmarks.full_size.run export DIR              # DIR-tensorrt-bf16, linked, and DIR-cpu-int8, 17 GB
    python -m benchmarks.full_size.run run DIR --engine openvino
    python -m benchmarks.full_size.run step DIR --size 2048
    python -m benchmarks.full_size.run decode DIR --size 2048

Every stage runs in a process of its own, whose memory is read fifty times a second. Each subcommand prints a table and
writes benchmarks/results/full-size-*.json.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common.environment import environment
from benchmarks.common.measured_process import Measured, run_measured
from benchmarks.common.paths import RESULTS
from qwen_image_engine.engines.backends import ENGINES
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION
from qwen_image_engine.runtime.system.text import size_text, table

PARTS = (sys.executable, "-m", "benchmarks.full_size.parts")
CHECKPOINT = (sys.executable, "-m", "benchmarks.full_size.checkpoint")
COMMAND = (sys.executable, "-c", "import sys; from qwen_image_engine.runtime.cli.entry import main; sys.exit(main())")
EXPORTS = (("tensorrt", "bf16", "link"), ("cpu", "int8", "copy"))  # target, precision, weights

Row = tuple[str, str]


def bundle_of(checkpoint: Path, target: str, precision: str) -> Path:
    """Return the folder of a bundle: next to the checkpoint, so that its files can be linked."""
    return checkpoint.with_name(f"{checkpoint.name}-{target}-{precision}")


def make(options: argparse.Namespace) -> dict[str, Any]:
    run = run_measured(
        *CHECKPOINT, options.folder, "--scale", options.scale,
        *(["--turbo"] if options.turbo else []),
    )  # fmt: skip
    return {**json.loads(run.output), **process(run)}


def export(options: argparse.Namespace) -> dict[str, Any]:
    return {"exports": [export_one(options.folder, *way) for way in EXPORTS if way[0] in options.targets]}


def export_one(checkpoint: Path, target: str, precision: str, weights: str) -> dict[str, Any]:
    bundle = bundle_of(checkpoint, target, precision)
    ways = ("-m", checkpoint, bundle, "--target", target, "--precision", precision, "--weights", weights, "--json")
    plan = run_measured(*COMMAND, "plan", *ways)
    predicted = json.loads(plan.output)
    run = run_measured(*COMMAND, "export", *ways)
    found = json.loads(run.output)
    return {
        "target": target,
        "precision": precision,
        "weights": weights,
        "plan": process(plan),
        **process(run),
        "stages": found["stages"],
        "bundle_bytes": found["bytes"],
        "written_bytes": written_bytes(bundle, checkpoint),
        "predicted": {
            "seconds": predicted["export_seconds"],
            "peak_bytes": predicted["export_memory_bytes"],
            "written_bytes": predicted["bundle_bytes"],
        },
        "checked_weights": check(bundle) if weights == "link" else None,
    }


def check(bundle: Path) -> dict[str, int]:
    """Check every graph with ONNX's checker and the places of its linked weights; return their number by component."""
    from benchmarks.common.graph_check import check_linked_graph

    components = read_manifest(bundle).components
    return {name: check_linked_graph(bundle / entry.model) for name, entry in components.items()}


def written_bytes(bundle: Path, checkpoint: Path) -> int:
    """Return the bytes of the bundle's files that are not linked to files of the checkpoint."""
    theirs = {path.resolve().stat().st_ino for path in checkpoint.rglob("*") if path.is_file()}
    stats = [path.stat() for path in bundle.rglob("*") if path.is_file()]
    return sum(stat.st_size for stat in stats if stat.st_ino not in theirs)


def run(options: argparse.Namespace) -> dict[str, Any]:
    saved = [] if options.pictures is None else ["--pictures", options.pictures]
    return part(
        options, "pictures", "--width", options.size, "--height", options.size, "--memory", options.memory, *saved
    )


def step(options: argparse.Namespace) -> dict[str, Any]:
    return part(options, "step", "--width", options.size, "--height", options.size, "--rounds", options.rounds)


def decode(options: argparse.Namespace) -> dict[str, Any]:
    return part(options, "decode", "--width", options.size, "--height", options.size)


def part(options: argparse.Namespace, name: str, *arguments: object) -> dict[str, Any]:
    bundle = bundle_of(options.folder, "cpu", "int8")
    threads = [] if options.threads is None else ["--threads", options.threads]
    done = run_measured(*PARTS, name, bundle, "--engine", options.engine, *arguments, *threads)
    return {
        "size": options.size,
        "engine": options.engine,
        **json.loads(done.output),
        **process(done),
        "predicted": predicted_peaks(bundle, options.size),
    }


def predicted_peaks(bundle: Path, size: int) -> dict[str, int]:
    """Return the memory peak of each stage of a picture that `plan` predicts. Measured peaks have the same stages."""
    from qwen_image_engine.export.estimate.estimate import PictureRequest, estimate
    from qwen_image_engine.export.targets import choose_target
    from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint

    manifest = read_manifest(bundle)
    checkpoint, target = Checkpoint.open(manifest.checkpoint.path), choose_target(manifest.target, manifest.precision)
    picture = PictureRequest((size, size), 0, DEFAULT_RESOLUTION)
    return estimate(checkpoint, target, picture, weights="copy", components=tuple(manifest.components)).stages


def process(run: Measured) -> dict[str, Any]:
    peak = None if run.peak is None else asdict(run.peak)
    return {"process_s": run.seconds, "process_cpu_s": run.cpu_seconds, "process_peak": peak}


def rows(document: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a document for a person, with predictions after the measured values."""
    found: list[Row] = []
    for name, count in document.get("counts", {}).items():
        found.append((name, f"{count['tensors']} tensors, {count['parameters']:,} parameters"))
    for item in document.get("exports", []):
        found += [(f"{item['target']} {item['precision']}", item["weights"]), *export_rows(item)]
    for picture in document.get("pictures", []):
        found.append((f"seed {picture['seed']}", f"{picture['steps']} steps"))
        found += [(f"  {name}", f"{seconds:.2f} s") for name, seconds in picture["seconds"].items()]
        found += peak_rows(picture["peaks"])
    if "stages" in document:
        taken: dict[str, list[float]] = {}
        for item in document["stages"]:
            taken.setdefault(item["stage"], []).append(item["seconds"])
        found += [(name, f"{median(seconds):.2f} s") for name, seconds in taken.items()]
        found += peak_rows(document["peaks"])
    if "process_s" in document:
        found += process_rows(document)
    if "engine" in document:
        found += [(f"predicted peak, {stage}", size_text(size)) for stage, size in document["predicted"].items()]
    return found


def export_rows(item: Mapping[str, Any]) -> list[Row]:
    return [
        *[(f"  {stage}", f"{seconds:.1f} s") for stage, seconds in item["stages"].items()],
        *[(f"  {name}", text) for name, text in process_rows(item)],
        ("  predicted", f"{item['predicted']['seconds']:.1f} s"),
        ("  predicted peak", size_text(item["predicted"]["peak_bytes"])),
        ("  written", size_text(item["written_bytes"])),
        ("  predicted", size_text(item["predicted"]["written_bytes"])),
        *[(f"  weights of {name} checked", str(count)) for name, count in (item["checked_weights"] or {}).items()],
    ]


def peak_rows(peaks: Mapping[str, Mapping[str, int]]) -> list[Row]:
    return [
        (f"  peak, {stage}", f"{size_text(peak['anonymous_bytes'])}, resident {size_text(peak['resident_bytes'])}")
        for stage, peak in peaks.items()
    ]


def process_rows(item: Mapping[str, Any]) -> list[Row]:
    found = [("whole process", f"{item['process_s']:.1f} s, {item['process_cpu_s']:.1f} s of a core")]
    if item["process_peak"] is not None:
        found += peak_rows({"whole process": item["process_peak"]})
    return found


SUBCOMMANDS: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "make": make,
    "export": export,
    "run": run,
    "step": step,
    "decode": decode,
}


def variant(options: argparse.Namespace) -> str:
    """Return the middle part of the name of a subcommand's result file."""
    words = [options.subcommand]
    if options.subcommand in ("step", "decode"):
        words.append(str(options.size))
    if options.subcommand in ("run", "step", "decode"):
        words.append(options.engine)
    if options.subcommand == "run" and options.memory != "sequential":
        words.append(options.memory)
    if options.subcommand == "export" and len(options.targets) < len(EXPORTS):
        words += options.targets
    return "-".join(words)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subcommands = parser.add_subparsers(dest="subcommand", required=True)
    for name in SUBCOMMANDS:
        own = subcommands.add_parser(name)
        own.add_argument("folder", type=Path, metavar="DIR", help="the checkpoint; bundles go beside it")
        own.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
        if name == "make":
            own.add_argument("--scale", choices=("released", "small"), default="released")
            own.add_argument("--turbo", action="store_true", help="with the fixed schedule of 8 steps")
        elif name == "export":
            targets = [target for target, _, _ in EXPORTS]
            own.add_argument("--targets", nargs="+", choices=targets, default=targets)
        else:
            own.add_argument("--engine", choices=ENGINES, default="onnxruntime")
            own.add_argument("--size", type=int, default=512 if name == "run" else 2048, help="pixels a side")
            own.add_argument("--threads", type=int)
        if name == "run":
            own.add_argument("--memory", choices=("sequential", "resident"), default="sequential")
            own.add_argument("--pictures", type=Path, help="a folder to save them in")
        if name == "step":
            own.add_argument("--rounds", type=int, default=1)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    options.folder = options.folder.absolute()
    try:
        document = SUBCOMMANDS[options.subcommand](options)
    except subprocess.CalledProcessError as error:
        print(f"full_size.py {options.subcommand}: a child failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    print("\n".join(table(rows(document), right=(1,))))
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"full-size-{variant(options)}.json"
    path.write_text(json.dumps({**document, **environment()}, indent=1) + "\n", encoding="utf-8")
    print(path, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
