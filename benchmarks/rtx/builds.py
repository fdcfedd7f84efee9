"""Builds of all engine files of `shapes` with TensorRT for RTX: seconds, bytes, and what the compiler's account says.

    python -m benchmarks.rtx.builds --work out/bench/rtx --output benchmarks/results/rtx_builds.json

Every precision is built for every compute capability that takes it, and once for all of them, at the default shapes.
Each bundle of plans is built twice: the second build reuses every plan. Nothing runs, so nothing here is a GPU's time.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.common.calibration_inputs import write_inputs
from benchmarks.common.environment import environment
from benchmarks.common.paths import ROOT, SHAPES
from qwen_image_engine.engines.tensorrt.build.job import BuildOptions
from qwen_image_engine.runtime.cli.main import main as qwen_image
from qwen_image_engine.runtime.tools.build.build import build_bundle
from qwen_image_engine.runtime.tools.build.shapes import BuildShapes

GPUS = {
    "bf16": (("8.6",), ("8.9",), ("12.0",), ("8.6", "8.9", "12.0")),
    "int8": (("8.6",), ("8.9",), ("12.0",), ("8.6", "8.9", "12.0")),
    "fp8": (("8.9",), ("12.0",), ("8.9", "12.0")),
    "fp8 with attention": (("8.9",), ("12.0",), ("8.9", "12.0")),
}
"""Compute capabilities to build for, by precision."""

PAIRS = 2
"""Instructions and prompts of the calibration: scales decide numbers, not kernels."""


def export(precision: str, bundle: Path, calibration: Path) -> None:
    """Export `shapes` for TensorRT, with a calibration if the precision needs one."""
    flags = ["--target", "tensorrt", "--precision", precision.partition(" ")[0]]
    if precision != "bf16":
        flags += ["--calibration", str(calibration)]
    if precision.endswith("attention"):
        flags.append("--fp8-attention")
    _command("export", "-m", str(SHAPES), str(bundle), *flags)


def calibrate(folder: Path, work: Path) -> None:
    write_inputs(work, PAIRS)
    _command(
        *("calibrate", "-m", str(SHAPES), str(folder), "--prompts", str(work / "prompts.txt")),
        *("--images", str(work / "images"), "--reference-resolution", "192"),
        *("--steps", "4", "--size", "128x128", "256x256"),
    )


def build(bundle: Path, capabilities: tuple[str, ...]) -> dict[str, Any]:
    """Build all components twice, and return seconds and the facts of each plan."""
    seconds, components = [], []
    for _ in range(2):
        began = time.perf_counter()
        components = build_bundle(
            bundle,
            BuildShapes(),
            BuildOptions(),
            engine="tensorrt-rtx",
            compute_capabilities=capabilities,
        )
        seconds.append(time.perf_counter() - began)
    assert all(item.reused for item in components)
    return {
        "compute_capabilities": capabilities,
        "seconds": seconds[0],
        "seconds_again": seconds[1],
        "plans": {
            item.component: {
                "bytes": item.file.bytes,
                "profiles": len(item.entry.profiles),
                "fused_attentions": item.entry.fused_attentions,
                "fp8_products": item.entry.fp8_products,
                "int8_products": item.entry.int8_products,
                "scratch_bytes": max(item.entry.scratch_bytes, default=0),
            }
            for item in components
        },
    }


def _command(*arguments: str) -> None:
    if code := qwen_image([*arguments]):
        raise SystemExit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/bench/rtx"))
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "rtx_builds.json")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    calibrate(options.work / "calibration", options.work)
    builds: dict[str, Any] = {}
    for precision, gpus in GPUS.items():
        bundle = options.work / precision.replace(" ", "-")
        export(precision, bundle, options.work / "calibration")
        builds[precision] = [build(bundle, capabilities) for capabilities in gpus]
    options.output.write_text(json.dumps({"builds": builds, **environment()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
