"""The cost of a precision on held-out prompts and edits: pictures that the judge accepts, and errors of every step.

    python -m benchmarks.quality.judge BUNDLE [BUNDLE …] -m CHECKPOINT [--jobs 2]

Every bundle draws free-running pictures from the same prompts and seeds. Errors are against the fp32 reference over the
whole schedule, on the first seed's prompts and on the edits. "step" is the error of the step alone, on the reference's
latents, keys and values. "teacher_forced" is the error of the bundle's encoder, prefix and step together, on the
reference's latents.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS, SHAPES
from qwen_image_engine.export.verify import difference as compare
from qwen_image_engine.export.verify.difference import Difference, difference
from qwen_image_engine.export.verify.recording import TeacherStep
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.reference.shapes.judge.evaluate import (
    KINDS,
    SEED,
    STEPS,
    HeldOut,
    HeldOutEdit,
    edit_references,
    evaluate,
    evaluate_edits,
    held_out,
    held_out_edits,
)
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.conditioning import Conditioning
from qwen_image_engine.runtime.images.reference_image import ReferenceImages
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.sampling.inputs import SamplingInputs
from qwen_image_engine.runtime.sampling.solver import integrate

KIND = "one or two shapes"
"""Kind of prompts that errors are measured on."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The reference's trajectory for a prompt or an edit."""

    request: HeldOut | HeldOutEdit
    images: ReferenceImages
    conditioning: Conditioning
    steps: Sequence[TeacherStep]


def trajectory(pipeline: QwenImage, request: HeldOut | HeldOutEdit) -> Trajectory:
    images = ReferenceImages()
    if isinstance(request, HeldOutEdit):
        images = pipeline.read_references(*edit_references(request))
    conditioning = pipeline.encode(request.prompt, images)
    denoise = pipeline.denoiser(conditioning, width=request.width, height=request.height)
    taken: list[TeacherStep] = []

    def velocity(latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        taken.append(TeacherStep(latents, sigma, denoise(latents, sigma)))
        return taken[-1].velocity

    channels = pipeline.facts.channels
    start = SamplingInputs.prepare(
        pipeline.schedule, channels, request.width, request.height, STEPS, request.seed, 1, None
    )
    for _ in integrate(velocity, start.latents, start.stages):
        pass
    return Trajectory(request, images, conditioning, taken)


def errors(pipeline: QwenImage, item: Trajectory, conditioning: Conditioning) -> list[Difference]:
    """Return the error of each step on the reference's latents."""
    velocity = pipeline.denoiser(conditioning, width=item.request.width, height=item.request.height)
    return [difference(velocity(step.latents, step.sigma), step.velocity) for step in item.steps]


def summary(runs: Sequence[Sequence[Difference]]) -> dict[str, float]:
    """Return the mean over all prompts and steps, the mean of the worst prompt, and the worst step."""
    means = [compare.mean(steps) for steps in runs]
    every, prompt = compare.mean(means), compare.worst(means)
    step = compare.worst(compare.worst(steps) for steps in runs)
    found = {"mean": every, "worst_prompt": prompt, "worst_step": step}
    return {f"{key}_{over}": getattr(item, key) for over, item in found.items() for key in ("cosine", "relative_l2")}


def all_errors(pipeline: QwenImage, trajectories: Sequence[Trajectory]) -> dict[str, dict[str, float]]:
    step = [errors(pipeline, item, item.conditioning) for item in trajectories]
    encoded = (pipeline.encode(item.request.prompt, item.images) for item in trajectories)
    forced = [errors(pipeline, item, found) for item, found in zip(trajectories, encoded, strict=True)]
    return {"step": summary(step), "teacher_forced": summary(forced)}


def measure(
    bundle: Path, prompts: Sequence[Trajectory], edits: Sequence[Trajectory], options: argparse.Namespace
) -> dict[str, Any]:
    manifest = read_manifest(bundle)
    with QwenImage.load(bundle, engine=options.engine, threads=options.threads) as pipeline:
        found = all_errors(pipeline, prompts)
        edits = () if manifest.absent_for_references else edits
        edited = all_errors(pipeline, edits) if edits else {}
        edit_score = evaluate_edits(pipeline, options.edits) if edits else None
        scores = {
            kind: [evaluate(pipeline, counts, options.prompts, SEED * (n + 1)) for n in range(options.seeds)]
            for kind, counts in KINDS.items()
            if kind in options.kinds
        }
    step_entry = manifest.components["step"]
    return {
        "target": manifest.target,
        "precision": manifest.precision,
        "quantised_linears": len(step_entry.quantised_layers),
        "high_linears": len([name for name in step_entry.excluded_layers if "transformer_blocks." in name]),
        **found,
        "pictures": {
            kind: {"rate": mean(score.rate for score in drawn), "seeds": [asdict(score) for score in drawn]}
            for kind, drawn in scores.items()
        },
        "edits": edit_score and {**edited, **asdict(edit_score), "rate": edit_score.rate},
    }


def describe(row: Mapping[str, Any]) -> str:
    rates = ", ".join(
        f"{kind} {found['rate']:.1%} ({', '.join(str(seed['fulfilled']) for seed in found['seeds'])})"
        for kind, found in row["pictures"].items()
    )
    forced, edits = row["teacher_forced"], row["edits"]
    if edits:
        rates += (
            f"; edits {edits['rate']:.1%}, {edits['kept']:.1%} of the rest kept, step cosine "
            f"{edits['step']['cosine_mean']:.5f}, teacher-forced {edits['teacher_forced']['relative_l2_mean']:.2%}"
        )
    return (
        f"{row['target']} {row['precision']}: step cosine {row['step']['cosine_mean']:.5f}, teacher-forced "
        f"{forced['relative_l2_mean']:.2%}, worst step {forced['relative_l2_worst_step']:.1%}; {rates}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("-m", "--model", type=Path, default=SHAPES)
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--threads", type=int, help="of each bundle's engines")
    parser.add_argument("--jobs", type=int, default=1, help="bundles at once")
    parser.add_argument("--prompts", type=int, default=200, help="of each kind and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS), help="of prompts to draw")
    parser.add_argument("--edits", type=int, default=150, help="of bundles that take reference images; 0 for none")
    parser.add_argument("--output", type=Path, default=RESULTS / "judge.json")
    options = parser.parse_args()
    reference = reference_pipeline(options.model)
    prompts = [trajectory(reference, item) for item in held_out(KINDS[KIND], options.prompts)]
    edits = [trajectory(reference, item) for item in held_out_edits(options.edits)]
    results = []
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        for row in pool.map(partial(measure, prompts=prompts, edits=edits, options=options), options.bundles):
            print(describe(row), flush=True)
            results.append(row)
    document = {
        "what": f"held-out prompts drawn by bundles on {options.engine} in {STEPS} steps: pictures that the judge "
        f"accepts, of {options.prompts} prompts for each seed; errors against the fp32 reference on the first seed's "
        f"{options.prompts} prompts of {KIND}, and on {options.edits} edits, means over prompts and steps",
        "results": results,
        **environment(),
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(options.output, file=sys.stderr)


if __name__ == "__main__":
    main()
