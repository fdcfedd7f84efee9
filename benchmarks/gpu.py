"""Parity and speed of the transformer on a GPU, in 10 minutes at most: `sh benchmarks/gpu.sh`.

Two parts. Parity: every component of the small checkpoint, and two blocks of the released width with random weights, in
bf16 against fp32 on the device, and the same of ONNX Runtime's CUDA engine where it is installed. Speed, at the
released size with random weights in bf16, one picture at a time: the prefix, and a first and steady cached steps by
CUDA's events, in every way that is there. A way that is not there, fails, or would not end in time is a row that says
so. `--device cpu --tiny` goes through all of it in seconds, at a size that tells nothing.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from environment import environment
from gpu_network import make_case, prefix_inputs, random_transformer
from gpu_parity import engine_rows, torch_rows
from gpu_peers import missing_engine, peer_ways
from gpu_profile import profile_step
from gpu_tensorrt import PRECISIONS, TensorRt, prefix_rows, shapes_of, tensorrt_ways
from gpu_ways import COMPILED, Budget, one_line, prefix_row, step_rows, torch_ways
from gpu_work import synchronise
from released_configs import released_configs, small_configs
from wide_checkpoint import SMALL, write_wide_checkpoint

from qwen_image_engine.engines.build_job import BuildOptions
from qwen_image_engine.engines.profile import Range
from qwen_image_engine.reference.checkpoint import Checkpoint
from qwen_image_engine.runtime.build import build_bundle
from qwen_image_engine.runtime.build_shapes import BuildShapes

RESULTS = Path(__file__).parent / "results"
PREFIX = 128
SECONDS = 540.0
"""Of 600: what is begun may take a little longer than it is thought to."""

PARITY_SECONDS = 90.0
ENGINE_SECONDS = 120.0
TENSORRT_SECONDS = 300.0
"""Eight engines of the small checkpoint; a guess."""

COMPARED = BuildShapes(sizes=((256, 256),), references=Range(0, 1, 2), reference_resolution=256)
"""What has room for `gpu_parity.SIZES`."""

PROFILE_SECONDS = 30.0


def parity(tiny: bool, device: torch.device, budget: Budget, work: Path) -> Iterator[dict[str, Any]]:
    wide = work / "wide"
    write_wide_checkpoint(wide, heads=4 if tiny else 32, blocks=2)
    yield from guarded("torch bf16", lambda: torch_rows(Checkpoint.open(SMALL), device))
    yield from guarded(
        "torch bf16", lambda: torch_rows(Checkpoint.open(wide), device, ("prefix", "prefix_image", "step"))
    )
    for engine, target, precision, seconds in (
        ("onnxruntime-cuda", "cuda", "bf16", ENGINE_SECONDS),
        ("onnxruntime-cuda", "cuda", "fp16", ENGINE_SECONDS),
        ("tensorrt", "tensorrt", "bf16", TENSORRT_SECONDS),
    ):
        way = f"{engine} {target} {precision}"
        missing = missing_engine(engine) or budget.refuses(seconds)
        if missing is not None:
            yield {"way": way, "missing": missing}
        else:
            rows = partial(exported_rows, engine, target, precision, device, work)
            yield from guarded(way, rows)


def exported_rows(
    engine: str, target: str, precision: str, device: torch.device, work: Path
) -> Iterator[dict[str, Any]]:
    from qwen_image_engine.export.bundle import export_bundle

    bundle = work / f"bundle-{target}-{precision}"
    export_bundle(SMALL, bundle, target=target, precision=precision)
    if target == "tensorrt":
        build_bundle(bundle, COMPARED, BuildOptions())
    yield from engine_rows(Checkpoint.open(SMALL), bundle, engine, device)


def guarded(way: str, rows: Callable[[], Iterable[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Rows up to the first failure, which is a row too."""
    try:
        yield from rows()
    except Exception as error:  # whatever it is, the other rows are worth having
        yield {"way": way, "missing": f"failed: {one_line(error)}"}


def device_facts(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"name": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        smi = (
            subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0].split(", ")
        )
    except (OSError, subprocess.CalledProcessError):
        smi = ["unknown"] * 3
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "driver": smi[0],
        "max_sm_clock": smi[1],
        "power_limit": smi[2],
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "cudnn": torch.backends.cudnn.version(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def speed(
    options: argparse.Namespace, device: torch.device, budget: Budget, work: Path, kept: ExitStack
) -> dict[str, Any]:
    configs = small_configs() if options.tiny else released_configs()
    values = configs["transformer"]
    prefix = 8 if options.tiny else PREFIX
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    network = random_transformer(values, device, dtype)
    synchronise(device)
    quick, slow = torch_ways(network, options.backend, 5 if options.tiny else 45)
    ceilings: dict[int, float] = {}
    sides = [pixels // 16 for pixels in options.pixels]
    rows = []
    timing = Budget(budget.left - PROFILE_SECONDS)
    shapes = shapes_of(sides, prefix)
    engines = [TensorRt(network, configs, work, kept, item, shapes, timing) for item in options.tensorrt]
    peers = [] if options.tensorrt_only else peer_ways(network, configs, work, kept)
    phases = [quick[:1]] if options.tensorrt_only else [[*quick, *peers], slow]
    tensorrt = tensorrt_ways(engines)
    phases += tensorrt  # last, for they take longest
    for row in step_rows(network, phases, sides, prefix, timing, ceilings):
        print(describe(row), file=sys.stderr, flush=True)
        rows.append(row)
    top = max(ceilings.values())
    prefixes = list(prefix_rows(engines, prefix_inputs(network, prefix), top, timing))
    engine_profiles: list[dict[str, Any]] = []
    profile: dict[str, Any] = {"missing": budget.refuses(PROFILE_SECONDS) or ""}
    if not profile["missing"]:
        (compiled,) = (way for way in quick if way.name == COMPILED)
        case = make_case(network, sides[0], prefix_inputs(network, prefix))
        profile = {"way": COMPILED, "pixels": 16 * sides[0], **profile_step(compiled.prepare(case), device)}
        for way in [way for ways in (peers, *tensorrt) for way in ways if way.is_ready()]:
            engine_profiles.append({"way": way.name, **profile_step(way.prepare(case), device)})
    return {
        "network": {
            **values,
            "parameters": sum(weight.numel() for weight in network.parameters()),
            "dtype": str(dtype),
        },
        "ceilings": [{"pixels": 16 * side, "tflop_per_s": found} for side, found in ceilings.items()],
        "prefix": prefix_row(network, prefix, top),
        "prefixes": prefixes,
        "steps": rows,
        "profile": profile,
        "engine_profiles": engine_profiles,
    }


def describe(row: dict[str, Any]) -> str:
    found = row.get("missing") or (
        f"{row['median_ms']:9.2f} ms, p90 {row['p90_ms']:9.2f}, first {row['first_ms']:9.1f}, "
        f"{row['tflop_per_s']:6.1f} TFLOP/s, {row['of_ceiling']:.0%} of the ceiling"
    )
    return f"{row.get('pixels', ''):5} {row['way']:60} {found}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for a dry run")
    parser.add_argument("--tiny", action="store_true", help="two narrow blocks in the place of the released size")
    parser.add_argument("--pixels", type=int, nargs="+", default=[1024, 2048, 512], help="sides, in this order")
    parser.add_argument(
        "--tensorrt",
        type=lambda text: [word for word in text.split(",") if word],
        default=list(PRECISIONS),
        metavar="PRECISION,…",
        help="what TensorRT is timed in, each built in minutes, as far as the time goes",
    )
    parser.add_argument("--tensorrt-only", action="store_true", help="leave out other ways than torch eager and that")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="nothing is begun that would not end by then")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    options = parser.parse_args()
    if unknown := set(options.tensorrt) - set(PRECISIONS):
        parser.error(f"--tensorrt {','.join(sorted(unknown))}: expected {', '.join(PRECISIONS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu.py: torch sees no CUDA device; a dry run is: sh benchmarks/gpu.sh --device cpu --tiny", file=sys.stderr
        )
        return 1
    began, budget, device = perf_counter(), Budget(options.seconds), torch.device(options.device)
    work = Path(tempfile.mkdtemp(prefix="gpu-"))
    try:
        with torch.no_grad(), ExitStack() as kept:
            # Speed first: it is what a GPU is lent for. Parity's rows take a minute and are never all dropped.
            measured = speed(options, device, Budget(budget.left - PARITY_SECONDS), work, kept)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            compared = []
            for row in parity(options.tiny, device, budget, work):
                print(row, file=sys.stderr, flush=True)
                compared.append(row)
    finally:
        shutil.rmtree(work)
    document = {
        "what": "random weights, one picture: milliseconds of a cached step and of the prefix by CUDA's events; "
        "operations as benchmarks/gpu_work.py derives them; the ceiling is a layer's linears alone on as many tokens",
        "device": device_facts(device),
        **measured,
        "parity": compared,
        "seconds": perf_counter() - began,
        **environment(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(options.output, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
