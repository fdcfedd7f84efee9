"""How often a pipeline fulfils held-out prompts: `python -m qwen_image_engine.reference.shapes.evaluate CHECKPOINT`."""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen_image_engine.reference.checkpoint import Checkpoint
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.reference.shapes.draw import draw
from qwen_image_engine.reference.shapes.judge import judge
from qwen_image_engine.reference.shapes.prompts import write_prompt
from qwen_image_engine.reference.shapes.scene import Scene, random_scene, split_scene, swaps
from qwen_image_engine.runtime.pipeline import QwenImage

SIZES = ((128, 128), (192, 192), (192, 128), (128, 192), (256, 256))
STEPS = 20
KINDS = {"one or two shapes": (1, 2), "three shapes": (3,)}
"""Prompts that are scored apart, by the numbers of shapes in them."""

SEED = 20_000


@dataclass(frozen=True)
class HeldOut:
    """A prompt that training did not see, the scene that it describes, and how it is drawn."""

    scene: Scene
    prompt: str
    width: int
    height: int
    seed: int


@dataclass(frozen=True)
class Score:
    """Prompts tried and fulfilled, the rate of each size, and what was wrong with the others by the judge's words."""

    tried: int
    fulfilled: int
    sizes: dict[str, float]
    faults: dict[str, int]

    @property
    def rate(self) -> float:
        """Fulfilled prompts of all."""
        return self.fulfilled / self.tried


def held_out(counts: tuple[int, ...], prompts: int, seed: int = SEED) -> Iterator[HeldOut]:
    """Held-out prompts at all of `SIZES` in turn.

    Args:
        counts: Numbers of shapes, in turn.
        prompts: How many prompts.
        seed: Of scenes, phrasings and noise.

    """
    rng = np.random.default_rng(seed)
    for index in range(prompts):
        scene = split_scene(rng, held_out=True, count=counts[index % len(counts)])
        width, height = SIZES[index % len(SIZES)]
        yield HeldOut(scene, write_prompt(scene, rng), width, height, seed + index)


def evaluate(pipeline: QwenImage, counts: tuple[int, ...], prompts: int, seed: int = SEED) -> Score:
    """Draw held-out prompts with the reference's pipeline or a bundle's, and judge the pictures.

    Arguments are those of `held_out`.
    """
    sizes: dict[str, list[bool]] = {f"{width}x{height}": [] for width, height in SIZES}
    faults = Counter[str]()
    for item in held_out(counts, prompts, seed):
        (picture,) = pipeline.generate(
            item.prompt, width=item.width, height=item.height, steps=STEPS, seed=item.seed, progress=False
        )
        verdict = judge(picture.rgba, item.scene)
        sizes[f"{item.width}x{item.height}"].append(verdict.fulfilled)
        faults.update(_kind(fault) for fault in verdict.faults[:1])
    rates = {size: float(np.mean(found)) for size, found in sizes.items() if found}
    return Score(prompts, sum(map(sum, sizes.values())), rates, dict(faults))


def judge_quality(pictures: int, seed: int = SEED) -> dict[str, float]:
    """Share of the recipe's own drawings that the judge accepts, and of those with one attribute swapped."""
    rng = np.random.default_rng(seed)
    accepted: dict[str, list[bool]] = {"own": []}
    for index in range(pictures):
        width, height = SIZES[index % len(SIZES)]
        scene = random_scene(rng)
        accepted["own"].append(judge(draw(scene, width, height, rng), scene).fulfilled)
        for attribute, changed in swaps(scene, rng):
            accepted.setdefault(attribute, []).append(judge(draw(changed, width, height, rng), scene).fulfilled)
    return {name: float(np.mean(values)) for name, values in accepted.items()}


def _kind(fault: str) -> str:
    detail = fault.split(": ", 1)[1]
    kinds = {"area": "area", "looks like": "shape", "ground": "stray", "not ": "colour"}
    return next((kind for key, kind in kinds.items() if key in detail), "other")


def report(pipeline: QwenImage, prompts: int) -> dict[str, Any]:
    """Scores of `prompts` prompts of one or two shapes, of as many of three, and the judge's own."""
    scores = {name: evaluate(pipeline, counts, prompts) for name, counts in KINDS.items()}
    found = {name: asdict(score) | {"rate": score.rate} for name, score in scores.items()}
    return found | {"judge accepts": judge_quality(prompts)}


def main() -> None:
    """Evaluate the fp32 reference of a checkpoint and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompts", type=int, default=200)
    args = parser.parse_args()
    print(json.dumps(report(reference_pipeline(Checkpoint.open(args.checkpoint)), args.prompts), indent=2))


if __name__ == "__main__":
    main()
