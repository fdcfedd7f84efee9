"""Parity and speed of the transformer on a GPU, in 10 minutes at most: `sh benchmarks/gpu.sh`.

The benchmark has two parts. Parity compares bf16 with fp32 on the device, for every component of the small checkpoint
and for two blocks of the released width with random weights, and does the same for the installed engines. Speed times
one picture at the released size, with random weights in bf16: the prefix, a first cached step and steady cached steps,
for every contender, an engine at a time. A contender that is missing, fails, or would not end in time is a row with the
reason. The file is written after every row. `--device cpu --tiny` runs everything in seconds, at a size whose figures
mean nothing.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Timer
from typing import Any

import torch

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS
from benchmarks.common.released_configs import released_configs, small_configs
from benchmarks.common.wide_checkpoint import SMALL, write_wide_checkpoint
from benchmarks.gpu.engine_parity import engine_parity
from benchmarks.gpu.loop import kernel_row_apart
from benchmarks.gpu.memory import reset_peak
from benchmarks.gpu.network import random_transformer
from benchmarks.gpu.parity import torch_rows
from benchmarks.gpu.peers import Exported, peers
from benchmarks.gpu.record import Record
from benchmarks.gpu.tensorrt import PRECISIONS, TensorRt, shapes_of
from benchmarks.gpu.timings import (
    COMPILED_STEP,
    EAGER,
    Budget,
    Rows,
    Steps,
    Way,
    compiled_prefix_rows,
    eager_way,
    guarded,
    one_line,
    prefix_row,
    torch_ways,
)
from benchmarks.gpu.work import synchronise
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint

PREFIX = 128
SECONDS = 530.0
"""Time budget [s] of the 600 s from the start of `gpu.sh`. The rest is for parts that take longer than estimated."""

GRACE_SECONDS = 50.0
"""Time after the budget at which the script ends itself [s]."""

PROFILE_SECONDS = 30.0
TINY = (64, "aot_eager")
"""Pixels a side of a dry run, and its torch.compile backend, which generates no code."""

WHAT = (
    "random weights, one picture: milliseconds of a cached step and of the prefix, by what timed_by says; operations "
    "as benchmarks/gpu/work.py derives them; the ceiling is a step's linears alone on as many tokens; peak_bytes of "
    "an engine beside torch is what the device held beyond what it held before that was loaded"
)


def device_info(device: torch.device) -> dict[str, Any]:
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


def run_all(options: argparse.Namespace, device: torch.device, budget: Budget, work: Path, record: Record) -> None:
    """Run all parts, quick and requested parts first, parts of minutes last. A failure does not end the rest."""
    plain = not options.tensorrt_only
    steps = timed_torch(options, device, budget, record)
    record.add("parity", torch_parity(options.tiny, device, work))
    (row,) = guarded({"way": "solver kernel"}, lambda: [kernel_row_apart()])
    record.put("kernel", row)
    if plain:
        in_onnxruntime = ("bf16", "fp16", "fp8")
        record.add("parity", engine_parity("onnxruntime-cuda", "cuda", in_onnxruntime, device, budget, work))
    if steps is not None and plain:
        values = configs(options.tiny)
        for way, exported in peers(steps.network, values, work):
            timed_engine(way, steps, record, exported)
    in_tensorrt = tuple(options.tensorrt)
    record.add("parity", engine_parity("tensorrt", "tensorrt", in_tensorrt, device, budget, work))
    if steps is not None:
        for precision in options.tensorrt:
            item = TensorRt(
                steps.network,
                configs(options.tiny),
                work,
                precision,
                lambda: shapes_of(list(steps.sides), steps.prefix),
                budget,
            )
            timed_engine(item.way, steps, record, item)
        if plain:
            for way in torch_ways(steps.network, options.backend, compile_seconds(options))[1]:
                record.add("steps", steps.rows([way]))


def timed_torch(options: argparse.Namespace, device: torch.device, budget: Budget, record: Record) -> Steps | None:
    """Time the quick contenders of the reference, and its prefix. Return None if the network cannot be set up."""
    values = configs(options.tiny)["transformer"]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        network = random_transformer(values, device, dtype)
        synchronise(device)
        steps = Steps(network, [pixels // 16 for pixels in options.pixels], 8 if options.tiny else PREFIX, budget)
        if options.tensorrt_only:
            quick = [eager_way(network)]
        else:
            quick = torch_ways(network, options.backend, compile_seconds(options))[0]
    except Exception as error:  # parity at the small size is worth having all the same
        record.put("network", {"missing": f"failed: {one_line(error)}"})
        return None
    parameters = sum(weight.numel() for weight in network.parameters())
    record.put("network", {**values, "parameters": parameters, "dtype": str(dtype)})
    record.add("ceilings", steps.ceiling_rows())
    record.add("steps", steps.rows(quick))
    (row,) = guarded({}, lambda: [prefix_row(steps)])
    record.put("prefix", row)
    if not options.tensorrt_only:
        record.add("prefixes", compiled_prefix_rows(steps, options.backend, compile_seconds(options)))
        for way in quick:
            if way.name in (EAGER, COMPILED_STEP):
                record.add("profiles", profile_rows(way, steps, steps.sides[:2]))
    return steps


def timed_engine(way: Way, steps: Steps, record: Record, engine: Exported | TensorRt | None = None) -> None:
    """Time all sizes of one contender and its prefix, and profile it; then close it: memory has no room for several."""
    try:
        record.add("steps", steps.rows([way]))
        if engine is not None:
            record.add("prefixes", engine.prefix_rows(steps))
        if isinstance(engine, TensorRt):
            record.add("loops", engine.loop_rows(steps))
        if way.is_ready():
            record.add("profiles", profile_rows(way, steps, steps.sides[:1]))
    finally:
        for row in guarded({"way": way.name, "closing": True}, lambda: closed(way, steps.device)):
            record.add("profiles", [row])


def closed(way: Way, device: torch.device) -> Rows:
    """Close a contender. Yields no rows; it is a generator for `guarded`."""
    way.close()
    reset_peak(device)
    yield from ()


def profile_rows(way: Way, steps: Steps, sides: Sequence[int]) -> Rows:
    for side in sides:
        missing = way.missing or steps.budget.refuses(PROFILE_SECONDS)
        facts = {"way": way.name, "pixels": 16 * side}
        yield from guarded(facts, lambda side=side: [steps.profile(way, side)], missing)


def torch_parity(tiny: bool, device: torch.device, work: Path) -> Rows:
    """Yield the parity rows of the reference in bf16: the small checkpoint, and two blocks of the released width."""

    def wide() -> Rows:
        write_wide_checkpoint(work / "wide", heads=4 if tiny else 32, blocks=2)
        return torch_rows(Checkpoint.open(work / "wide"), device, ("prefix", "prefix_image", "step"))

    for rows in (lambda: torch_rows(Checkpoint.open(SMALL), device), wide):
        yield from guarded({"way": "torch bf16"}, rows)


def configs(tiny: bool) -> dict[str, Any]:
    return dict(small_configs() if tiny else released_configs())


def compile_seconds(options: argparse.Namespace) -> float:
    """Return the estimated seconds of one compilation of a block."""
    return 5.0 if options.tiny else 45.0


def stopped(work: Path) -> None:
    """End the process when the time is up. The file has every row up to then."""
    print("gpu.py: the time is up; what was measured is in the file", file=sys.stderr, flush=True)
    shutil.rmtree(work, ignore_errors=True)
    os._exit(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for a dry run")
    parser.add_argument("--tiny", action="store_true", help=f"two narrow blocks, {TINY[0]} pixels, {TINY[1]}")
    parser.add_argument("--pixels", type=int, nargs="+", help="sides, in this order; 1024 2048 512 unless given")
    parser.add_argument(
        "--tensorrt",
        type=lambda text: [word for word in text.split(",") if word],
        default=list(PRECISIONS),
        metavar="PRECISION,…",
        help="what TensorRT is timed in, each built in minutes, as far as the time goes",
    )
    parser.add_argument("--tensorrt-only", action="store_true", help="leave out other ways than torch eager and that")
    parser.add_argument("--backend", help="of torch.compile; inductor unless given")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="nothing is begun that would not end by then")
    parser.add_argument(
        "--output", type=Path, help="benchmarks/results/gpu.json; of a dry run, which is no result, out/gpu.json"
    )
    options = parser.parse_args()
    options.output = options.output or (RESULTS if options.device == "cuda" else Path("out")) / "gpu.json"
    options.pixels = options.pixels or ([TINY[0]] if options.tiny else [1024, 2048, 512])
    options.backend = options.backend or (TINY[1] if options.tiny else "inductor")
    if unknown := set(options.tensorrt) - set(PRECISIONS):
        parser.error(f"--tensorrt {','.join(sorted(unknown))}: expected {', '.join(PRECISIONS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu.py: torch sees no CUDA device; a dry run is: sh benchmarks/gpu.sh --device cpu --tiny", file=sys.stderr
        )
        return 1
    torch.backends.cudnn.allow_tf32 = False  # the reference in fp32 is one, as is the VAE on ONNX Runtime
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the folder goes then too
    seconds = options.seconds - max(0.0, time.time() - float(os.environ.get("GPU_BEGAN", time.time())))
    budget, device = Budget(seconds), torch.device(options.device)
    record = Record(options.output, {"what": WHAT, "device": device_info(device), **environment()})
    work = Path(tempfile.mkdtemp(prefix="gpu-"))
    stop = Timer(seconds + GRACE_SECONDS, stopped, (work,))
    stop.daemon = True
    stop.start()
    try:
        with torch.no_grad():
            run_all(options, device, budget, work, record)
    finally:
        stop.cancel()
        shutil.rmtree(work, ignore_errors=True)
    record.put("complete", True)
    print(options.output, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
