"""Inputs of `calibrate` for drawing and editing: `python -m benchmarks.common.calibration_inputs FOLDER [--pairs 8]`.

Writes FOLDER/prompts.txt, an instruction and a prompt in turn, and FOLDER/images, the reference image of each
instruction. Scenes and edits are from the training part of the recipe of `shapes`.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from qwen_image_engine.reference.shapes.judge.evaluate import SIZES
from qwen_image_engine.reference.shapes.scenes.edits import KINDS, split_edit
from qwen_image_engine.reference.shapes.scenes.instructions import write_instruction
from qwen_image_engine.reference.shapes.scenes.prompts import write_prompt
from qwen_image_engine.reference.shapes.scenes.scene import split_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=8, help="of an instruction and a prompt")
    options = parser.parse_args()
    write_inputs(options.folder, options.pairs)


def write_inputs(folder: Path, pairs: int) -> None:
    """Write `folder`/prompts.txt and `folder`/images with this number of instructions and of prompts."""
    images = folder / "images"
    shutil.rmtree(images, ignore_errors=True)  # of an earlier run, which may have made more
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    kinds = [kind for kind in KINDS if kind != "combine"]  # which has two references
    lines = []
    for index in range(pairs):
        edit = split_edit(rng, kinds[index % len(kinds)], held_out=False)
        width, height = SIZES[index % len(SIZES)]
        Image.fromarray(edit.references[0].draw(width, height)).save(images / f"{index:02}.png")
        lines += [write_instruction(edit, rng), write_prompt(split_scene(rng, held_out=False), rng)]
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
