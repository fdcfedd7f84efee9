"""The share of held-out prompts that a pipeline fulfils.

python -m qwen_image_engine.reference.shapes.judge.evaluate CHECKPOINT
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from PIL import Image

from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.reference.shapes.judge.edit import judge_edit
from qwen_image_engine.reference.shapes.judge.picture import judge
from qwen_image_engine.reference.shapes.scenes.draw import draw
from qwen_image_engine.reference.shapes.scenes.edits import KINDS as EDIT_KINDS
from qwen_image_engine.reference.shapes.scenes.edits import Edit, other_edit, random_edit, split_edit
from qwen_image_engine.reference.shapes.scenes.instructions import write_instruction
from qwen_image_engine.reference.shapes.scenes.prompts import write_prompt
from qwen_image_engine.reference.shapes.scenes.scene import Scene, random_scene, split_scene, swaps
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.sampling.spacing import Spacing

SIZES = ((128, 128), (192, 192), (192, 128), (128, 192), (256, 256))
STEPS = 20
KINDS = {"one or two shapes": (1, 2), "three shapes": (3,)}
"""Kinds of prompts that are scored separately: the numbers of shapes in them."""

SEED = 20_000


class Sampling(TypedDict, total=False):
    """Options of every request that is judged, as `QwenImage.prepare` describes them."""

    steps: int
    solver: str
    sigmas: Spacing
    guidance: float
    negative_prompt: str | None


@dataclass(frozen=True)
class HeldOut:
    """A prompt that training did not see, the scene that it describes, and the size and seed to draw it with."""

    scene: Scene
    prompt: str
    width: int
    height: int
    seed: int


@dataclass(frozen=True)
class Score:
    """The score of prompts: tried and fulfilled, the rate of each size, and the number of faults by kind."""

    tried: int
    fulfilled: int
    sizes: dict[str, float]
    faults: dict[str, int]

    @property
    def rate(self) -> float:
        """Share of the prompts that are fulfilled."""
        return self.fulfilled / self.tried


def held_out(counts: tuple[int, ...], prompts: int, seed: int = SEED) -> Iterator[HeldOut]:
    """Yield held-out prompts at all of `SIZES` in turn.

    Args:
        counts: Numbers of shapes, in turn.
        prompts: Number of prompts.
        seed: Seed of scenes, phrasings and noise.

    """
    rng = np.random.default_rng(seed)
    for index in range(prompts):
        scene = split_scene(rng, held_out=True, count=counts[index % len(counts)])
        width, height = SIZES[index % len(SIZES)]
        yield HeldOut(scene, write_prompt(scene, rng), width, height, seed + index)


def evaluate(
    pipeline: QwenImage,
    counts: tuple[int, ...],
    prompts: int,
    seed: int = SEED,
    **sampling: Unpack[Sampling],
) -> Score:
    """Draw held-out prompts with the reference's pipeline or a bundle's, and judge the pictures.

    `counts`, `prompts` and `seed` go to `held_out`. `sampling` are options of every request, such as a solver; it takes
    `STEPS` steps if they name none.
    """
    asked: Sampling = {"steps": STEPS, **sampling}
    sizes: dict[str, list[bool]] = {f"{width}x{height}": [] for width, height in SIZES}
    faults = Counter[str]()
    for item in held_out(counts, prompts, seed):
        (picture,) = pipeline.generate(item.prompt, width=item.width, height=item.height, seed=item.seed, **asked)
        verdict = judge(picture.rgba, item.scene)
        sizes[f"{item.width}x{item.height}"].append(verdict.fulfilled)
        faults.update(_kind(fault) for fault in verdict.faults[:1])
    rates = {size: float(np.mean(found)) for size, found in sizes.items() if found}
    return Score(prompts, sum(map(sum, sizes.values())), rates, dict(faults))


@dataclass(frozen=True)
class HeldOutEdit:
    """An instruction that training did not see, the edit that it describes, and the size and seed to draw it with."""

    edit: Edit
    prompt: str
    width: int
    height: int
    seed: int


@dataclass(frozen=True)
class EditScore:
    """The score of edits: tried and made, the share of pixels left alone, and the rates by kind and size.

    `kept` is the mean share of the pixels outside the edited region that were left alone.
    """

    tried: int
    fulfilled: int
    kept: float
    kinds: dict[str, float]
    kept_kinds: dict[str, float]
    sizes: dict[str, float]
    kept_sizes: dict[str, float]
    faults: dict[str, int]

    @property
    def rate(self) -> float:
        """Share of the edits that are made."""
        return self.fulfilled / self.tried


def held_out_edits(edits: int, seed: int = SEED) -> Iterator[HeldOutEdit]:
    """Yield held-out edits of all kinds at all of `SIZES` in turn, from the seed of edits, phrasings and noise."""
    rng = np.random.default_rng(seed)
    for index in range(edits):
        edit = split_edit(rng, EDIT_KINDS[index % len(EDIT_KINDS)], held_out=True)
        width, height = SIZES[index % len(SIZES)]
        yield HeldOutEdit(edit, write_instruction(edit, rng), width, height, seed + index)


def edit_references(item: HeldOutEdit) -> tuple[list[Image.Image], int]:
    """Return the reference images of an edit, and the resolution at which they are not resized."""
    images = [Image.fromarray(reference.draw(item.width, item.height)) for reference in item.edit.references]
    return images, round(math.sqrt(item.width * item.height))


def evaluate_edits(pipeline: QwenImage, edits: int, seed: int = SEED, **sampling: Unpack[Sampling]) -> EditScore:
    """Make held-out edits with the reference's pipeline or a bundle's, and judge the pictures.

    `edits` and `seed` go to `held_out_edits`, `sampling` as in `evaluate`.
    """
    asked: Sampling = {"steps": STEPS, **sampling}
    kinds: dict[str, list[tuple[bool, float]]] = {kind: [] for kind in EDIT_KINDS}
    sizes: dict[str, list[tuple[bool, float]]] = {f"{width}x{height}": [] for width, height in SIZES}
    faults = Counter[str]()
    for item in held_out_edits(edits, seed):
        references, resolution = edit_references(item)
        (picture,) = pipeline.generate(
            item.prompt,
            references=references,
            reference_resolution=resolution,
            width=item.width,
            height=item.height,
            seed=item.seed,
            **asked,
        )
        verdict = judge_edit(picture.rgba, item.edit, np.asarray(references[0]))
        for found in (kinds[item.edit.kind], sizes[f"{item.width}x{item.height}"]):
            found.append((verdict.fulfilled, verdict.kept))
        faults.update(f"{item.edit.kind}: {_kind(fault)}" for fault in verdict.faults[:1])
    everything = [pair for pairs in kinds.values() for pair in pairs]
    fulfilled, kept = (sum(pair[i] for pair in everything) for i in range(2))
    return EditScore(
        tried=edits,
        fulfilled=int(fulfilled),
        kept=kept / edits,
        kinds=_means(kinds, 0),
        kept_kinds=_means(kinds, 1),
        sizes=_means(sizes, 0),
        kept_sizes=_means(sizes, 1),
        faults=dict(faults),
    )


def _means(found: Mapping[str, Sequence[tuple[float, ...]]], index: int) -> dict[str, float]:
    return {name: float(np.mean([item[index] for item in items])) for name, items in found.items() if items}


def edit_judge_quality(edits: int, seed: int = SEED) -> dict[str, float]:
    """Return the share that the judge accepts of the recipe's own edits, of unedited pictures, and of other edits."""
    rng = np.random.default_rng(seed)
    accepted: dict[str, list[bool]] = {"own": [], "unedited": [], "another": []}
    for index in range(edits):
        width, height = SIZES[index % len(SIZES)]
        edit = random_edit(rng, EDIT_KINDS[index % len(EDIT_KINDS)])
        reference = edit.references[0].draw(width, height)
        other = other_edit(edit, rng)
        pictures = {"own": edit.result, "unedited": edit.references[0], "another": other.result}
        for name, drawing in pictures.items():
            accepted[name].append(judge_edit(drawing.draw(width, height), edit, reference).fulfilled)
    return {name: float(np.mean(values)) for name, values in accepted.items()}


def judge_quality(pictures: int, seed: int = SEED) -> dict[str, float]:
    """Return the share that the judge accepts of the recipe's own drawings, and of drawings with a swapped attribute.

    The second share is for each attribute.
    """
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
    kinds = {"area": "area", "looks like": "shape", "ground": "stray", "not ": "colour", "ink": "word"}
    return next((kind for key, kind in kinds.items() if key in detail), "other")


def report(pipeline: QwenImage, prompts: int, edits: int) -> dict[str, Any]:
    """Return the scores of a pipeline, and the shares that the judge accepts of the recipe's own pictures.

    Args:
        pipeline: Pipeline that draws.
        prompts: Number of prompts of one or two shapes, and of prompts of three.
        edits: Number of edits.

    """
    scores = {name: evaluate(pipeline, counts, prompts) for name, counts in KINDS.items()}
    found = {name: asdict(score) | {"rate": score.rate} for name, score in scores.items()}
    edited = evaluate_edits(pipeline, edits)
    found["edits"] = asdict(edited) | {"rate": edited.rate}
    return found | {"judge accepts": judge_quality(prompts), "judge accepts edits": edit_judge_quality(edits)}


def main() -> None:
    """Evaluate the fp32 reference of a checkpoint and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--edits", type=int, default=150)
    args = parser.parse_args()
    pipeline = reference_pipeline(Checkpoint.open(args.checkpoint))
    print(json.dumps(report(pipeline, args.prompts, args.edits), indent=2))


if __name__ == "__main__":
    main()
