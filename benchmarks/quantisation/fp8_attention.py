"""The error that FP8 attention adds to FP8 products, and that a prefix cache in FP8 adds to both.

python -m benchmarks.quantisation.fp8_attention [-m CHECKPOINT] [--output benchmarks/results/fp8_attention.json]

Teacher-forced steps of the float32 twin against the fp32 reference: everything from the prompt on is the bundle's own,
and each step is given the reference's latents. There are three checkpoints: the one named; the same with random weights
of 32 blocks, as `benchmarks.quantisation.run` draws them, whose gates are nearly shut; and random weights of 32 wider
blocks whose gates are open, so that the error of the products alone is large. The prompts, and the edit with its
reference image, are held out: the calibration has seen none of them.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from benchmarks.common.calibration_inputs import write_inputs
from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS, SHAPES
from benchmarks.common.wide_checkpoint import write_wide_checkpoint
from benchmarks.quantisation.run import BLOCKS, SIZES, traced_once, write_random
from qwen_image_engine.calibration.observe.calibrate import calibrate
from qwen_image_engine.calibration.quantise import network as quantised_network
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.verify.difference import difference
from qwen_image_engine.export.verify.recording import REFERENCE_RESOLUTION, Case, Recording, default_cases, record
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.shapes.scenes.edits import split_edit
from qwen_image_engine.reference.shapes.scenes.instructions import write_instruction
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer

HEADS = 2
"""Heads of 128 channels of the random weights: 256 channels, a step of 256 latents in a quarter of a second."""

PAIRS, STEPS = 4, 12
"""Instructions and prompts of the calibration, and the steps of each."""

MOST = 0.2
"""Rise of the mean error up to which FP8 attention would be the default of `--precision fp8`."""

PRODUCTS, ATTENTION, CACHE = "FP8 products", "and FP8 attention", "and prefix keys and values in FP8"


def ways() -> Iterator[tuple[str, dict[str, Any], AbstractContextManager[Any]]]:
    """Yield the name of each way, the options of its export, and a context to export in."""
    in_floats = mock.patch.object(quantised_network, "_cache", return_value=())
    yield PRODUCTS, {}, nullcontext()
    yield ATTENTION, {"fp8_attention": True}, in_floats
    yield CACHE, {"fp8_attention": True}, nullcontext()


def cases(folder: Path) -> tuple[Case, ...]:
    """Return three prompts at three sizes, and an edit of the held-out part with its reference image."""
    rng = np.random.default_rng(1)
    edit = split_edit(rng, "recolour", held_out=True)
    image = Image.fromarray(edit.references[0].draw(256, 256))
    own = Case("edit", write_instruction(edit, rng, "en"), 192, 192, references=(image,))
    return (*default_cases(load_tokenizer(folder), references=False), own)


def errors(bundle: Path, recordings: Sequence[Recording]) -> dict[str, list[float]]:
    """Return the relative L2 of every teacher-forced step, by case."""
    found = {}
    with QwenImage.load(bundle, memory="sequential") as pipeline:
        for recording in recordings:
            case = recording.case
            images = pipeline.read_references(case.references, REFERENCE_RESOLUTION)
            velocity = pipeline.denoiser(pipeline.encode(case.prompt, images), width=case.width, height=case.height)
            found[case.name] = [
                difference(velocity(step.latents, step.sigma), step.velocity).relative_l2 for step in recording.steps
            ]
    return found


def mean(found: Mapping[str, Sequence[float]]) -> float:
    """Return the mean of all steps of all cases."""
    return fmean(error for steps in found.values() for error in steps)


def measure(name: str, checkpoint: Checkpoint, work: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each way to quantise one checkpoint."""
    work.mkdir()
    write_inputs(work, PAIRS)
    recordings = record(checkpoint, cases(checkpoint.folder), "sequential")
    calibrate(
        checkpoint,
        work / "calibration",
        (work / "prompts.txt").read_text(encoding="utf-8").splitlines(),
        images=sorted((work / "images").iterdir()),
        reference_resolution=REFERENCE_RESOLUTION,
        steps=STEPS,
        sizes=SIZES,
        guidance=1,
    )
    plain = 0.0
    for way, options, context in ways():
        bundle = work / "bundle"
        shutil.rmtree(bundle, ignore_errors=True)  # what is mocked, an export that reuses folders does not see
        with context:
            manifest = export_bundle(
                checkpoint,
                bundle,
                target="tensorrt-twin",
                precision="fp8",
                calibration=work / "calibration",
                **options,
            )
        found = errors(bundle, recordings)
        plain = plain or mean(found)
        row = {
            "checkpoint": name,
            "way": way,
            "cache_token_bytes": manifest.cache_token_bytes,
            "relative_l2": mean(found),
            "rise": mean(found) / plain - 1,
            "by_step": [fmean(steps) for steps in zip(*found.values(), strict=True)],
            "cases": found,
        }
        print(json.dumps({key: value for key, value in row.items() if key != "cases"}), flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, default=SHAPES)
    parser.add_argument("--output", type=Path, default=RESULTS / "fp8_attention.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, traced_once():
        checkpoint = Checkpoint.open(options.model)
        wide = Path(folder) / "wide-weights"
        write_wide_checkpoint(wide, HEADS, BLOCKS)
        random = write_random(options.model, Path(folder) / "random-weights", BLOCKS)
        width = checkpoint.transformer.hidden_size
        rows = [
            *measure("as trained", checkpoint, Path(folder) / "trained"),
            *measure(f"random, {BLOCKS} blocks, {width} wide", Checkpoint.open(random), Path(folder) / "random"),
            *measure(f"open gates, {BLOCKS} blocks, {HEADS * 128} wide", Checkpoint.open(wide), Path(folder) / "wide"),
        ]
    document = {
        "what": "teacher-forced steps of the float32 twin against the fp32 reference, four requests of eight steps",
        "most_rise_of_a_default": MOST,
        "rows": rows,
        **environment(),
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
