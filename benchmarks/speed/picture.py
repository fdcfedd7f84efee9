"""The seconds of one 256x256 picture of 20 steps: engines against the fp32 torch reference, interleaved in one run.

python -m benchmarks.speed.picture --bundle out/demo/bundle [-m CHECKPOINT]
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.cli.shared.text import stage_seconds
from qwen_image_engine.runtime.pipeline import QwenImage

WIDTH = HEIGHT = 256
STEPS = 20
PROMPT = "a red circle on the left and a blue square on the right on a white background"


def measure(pipeline: QwenImage, round_number: int) -> dict[str, float]:
    """Time one picture. The prompt differs each round, so that no encoding is reused."""
    pipeline.timings.clear()
    began = perf_counter()
    pipeline.generate(f"{PROMPT}, {round_number}", width=WIDTH, height=HEIGHT, steps=STEPS, seed=round_number)
    total = perf_counter() - began
    return {**stage_seconds(pipeline.timings.entries, [1] * STEPS), "total_s": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("out/demo/bundle"))
    parser.add_argument("-m", "--model", help="checkpoint; where the bundle's manifest says unless given")
    parser.add_argument("--engines", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS / "picture.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    pipelines: dict[str, QwenImage] = {}
    load_s: dict[str, float] = {}
    for name in options.engines:
        began = perf_counter()
        pipelines[name] = QwenImage.load(options.bundle, engine=name, threads=options.threads)
        load_s[name] = perf_counter() - began
    began = perf_counter()
    manifest = read_manifest(options.bundle)
    pipelines["reference"] = reference_pipeline(options.model or manifest.checkpoint.path)
    load_s["reference"] = perf_counter() - began

    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in pipelines}
    for round_number in range(options.rounds + 1):
        for name, pipeline in pipelines.items():
            timings = measure(pipeline, round_number)
            if round_number:  # round 0 warms up
                rounds[name].append(timings)

    results: dict[str, Any] = {}
    for name, found in rounds.items():
        medians = {stage: median(item[stage] for item in found) for stage in found[0] if stage != "load_s"}
        ratios = [slow["total_s"] / own["total_s"] for slow, own in zip(rounds["reference"], found, strict=True)]
        results[name] = {
            "load_s": load_s[name],
            **medians,
            "slowest_total_s": max(item["total_s"] for item in found),
            "times_faster_than_reference": median(ratios),
        }
    document = {
        "what": f"one {WIDTH}x{HEIGHT} picture of {STEPS} steps; median seconds of {options.rounds} interleaved rounds",
        "checkpoint": manifest.checkpoint.name,
        "precision": manifest.precision,
        "threads": options.threads,
        "results": results,
        **environment(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for name, item in results.items():
        print(f"{name:12} " + "  ".join(f"{key} {value:.3f}" for key, value in item.items()))
    print(options.output, file=sys.stderr)


if __name__ == "__main__":
    main()
