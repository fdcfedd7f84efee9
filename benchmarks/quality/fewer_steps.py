"""The judge of `shapes` on pictures of fewer evaluations: held-out prompts and edits by solver and steps.

    python -m benchmarks.quality.fewer_steps BUNDLE [BUNDLE …]

Every setting draws the same prompts and edits from the same seeds on onnxruntime. Seconds are those of whole pictures,
in the order of the settings on one machine, so ratios hold as far as it was quiet; the evaluations of a picture are
counted, not timed.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS
from qwen_image_engine.reference.shapes.judge.evaluate import KINDS, SEED, evaluate, evaluate_edits
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.sampling.fast import FAST

KIND = "one or two shapes"


@dataclass(frozen=True)
class Setting:
    """A solver and its number of steps; none of these evaluates the network more than once a step."""

    solver: str
    steps: int


SETTINGS = (
    Setting("euler", 40),
    Setting(FAST.solver, FAST.steps),
    Setting("euler", 14),
    Setting("ab2", 10),
    Setting("dpm++2m", 14),
    Setting("unipc", 14),
    Setting("ab2", 20),
)
QUANTISED = SETTINGS[:3]
"""Settings of bundles that are not fp32."""


def measure(pipeline: QwenImage, setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """Draw and judge the prompts and edits of all seeds."""
    steps, solver = setting.steps, setting.solver
    seeds = [SEED * (number + 1) for number in range(options.seeds)]
    began = time.perf_counter()
    prompts = [evaluate(pipeline, KINDS[KIND], options.prompts, seed, steps=steps, solver=solver) for seed in seeds]
    prompts_s = time.perf_counter() - began
    edits = [evaluate_edits(pipeline, options.edits, seed, steps=steps, solver=solver) for seed in seeds]
    edits_s = time.perf_counter() - began - prompts_s
    return {
        **asdict(setting),
        "evaluations": setting.steps,
        "prompts": {"rate": mean(score.rate for score in prompts), "fulfilled": [item.fulfilled for item in prompts]},
        "edits": {
            "rate": mean(score.rate for score in edits),
            "fulfilled": [item.fulfilled for item in edits],
            "kept": mean(score.kept for score in edits),
        },
        "seconds_a_prompt": prompts_s / len(seeds) / options.prompts,
        "seconds_an_edit": edits_s / len(seeds) / options.edits,
    }


def describe(row: Mapping[str, Any]) -> str:
    """Return one line of a row."""
    both = (f"{name} {row[name]['rate']:.1%} {row[name]['fulfilled']}" for name in ("prompts", "edits"))
    return f"{row['precision']} {row['solver']} {row['steps']}: {', '.join(both)}, {row['seconds_a_prompt']:.2f} s"


def main() -> None:
    """Measure the settings of all bundles and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--edits", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, default=RESULTS / "fewer-steps.json")
    options = parser.parse_args()
    rows, here = [], environment()
    for folder in options.bundles:
        precision = read_manifest(folder).precision
        for setting in SETTINGS if precision == "fp32" else QUANTISED:
            with QwenImage.load(folder, threads=options.threads) as pipeline:
                rows.append({"precision": precision} | measure(pipeline, setting, options))
            print(describe(rows[-1]), file=sys.stderr, flush=True)
    found = {
        "what": f"held-out prompts of {KIND} ({options.prompts} a seed) and edits ({options.edits} a seed) of `shapes` "
        "that the judge accepts, by solver and steps, on onnxruntime",
        "results": rows,
        **here,
    }
    options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
