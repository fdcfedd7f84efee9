"""`qwen-image run`: draw pictures with a bundle's engines."""

import argparse
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwen_image_engine.engines.engine import ENGINES
from qwen_image_engine.engines.errors import UsageError
from qwen_image_engine.runtime.commands.outputs import check_writable, picture_paths, read_latents, write_array
from qwen_image_engine.runtime.commands.report import Report, size_text, table
from qwen_image_engine.runtime.commands.stages import stage_seconds

SUMMARY = "draw pictures with a bundle's engines"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; ranges are checked where the values are used, so that the API has the same errors."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("-p", "--prompt", required=True, help="what to draw, at most 1,100 tokens; may be empty")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .png; several become out-0.png, …")
    parser.add_argument(
        "-r",
        "--reference",
        type=Path,
        action="append",
        default=[],
        metavar="IMAGE",
        help="an image to edit or to take from; may be repeated up to 10 times, in the order the prompt numbers them",
    )
    parser.add_argument(
        "--reference-resolution",
        type=int,
        default=DEFAULT_RESOLUTION,
        metavar="PIXELS",
        help=f"side of a square of the area that each is fitted to ({DEFAULT_RESOLUTION})",
    )
    parser.add_argument(
        "-W", "--width", type=int, help="pixels, a multiple of 32 (1024, or as the last reference's aspect ratio)"
    )
    parser.add_argument("-H", "--height", type=int, help="likewise")
    parser.add_argument("-s", "--steps", type=int, help="of the sampler (40, or the checkpoint's own)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, the same on every engine (0)")
    parser.add_argument("-n", "--negative-prompt", help="what to steer away from; needs --guidance above 1")
    parser.add_argument("--guidance", type=float, default=1.0, help="1 for none; above 1 each step runs twice (1)")
    parser.add_argument("--num-images", type=int, default=1, choices=range(1, 5), help="drawn as one batch (1)")
    parser.add_argument(
        "--latents", type=Path, metavar="IN.npy", help="initial noise: float32 (batch, tokens, channels)"
    )
    parser.add_argument("--save-latents", type=Path, metavar="OUT.npy", help="write the final latents likewise")
    add_engine_arguments(parser)
    parser.add_argument(
        "--memory",
        choices=("resident", "sequential"),
        default="resident",
        help="keep every engine loaded, or one at a time (resident)",
    )
    parser.add_argument("--measure-memory", action="store_true", help="report each stage's peak; Linux alone tells")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what every verb that runs engines takes."""
    parser.add_argument(
        "--engine", choices=ENGINES, default="onnxruntime", help="openvino-bf16 needs bf16 instructions (onnxruntime)"
    )
    parser.add_argument("--threads", type=int, help="of one engine (every core)")


def execute(options: argparse.Namespace) -> Report:
    """Draw; nothing is written unless every picture could be drawn."""
    from qwen_image_engine.runtime.pipeline import QwenImage
    from qwen_image_engine.runtime.process_memory import MemoryWatch
    from qwen_image_engine.runtime.size import latent_size

    latent_size(options.width, options.height)  # before gigabytes are loaded
    files = picture_paths(options.output, options.num_images)
    if options.save_latents and options.save_latents.suffix != ".npy":
        raise UsageError(f"--save-latents {options.save_latents}: expected a name that ends in .npy")
    check_writable(*files, *([options.save_latents] if options.save_latents else []))
    latents = None if options.latents is None else read_latents(options.latents)

    began = time.perf_counter()
    with (
        MemoryWatch() if options.measure_memory else nullcontext() as watch,
        QwenImage.load(
            options.bundle, engine=options.engine, memory=options.memory, threads=options.threads, watch=watch
        ) as pipeline,
    ):
        pictures = pipeline.generate(
            options.prompt,
            negative_prompt=options.negative_prompt,
            guidance=options.guidance,
            width=options.width,
            height=options.height,
            steps=options.steps,
            seed=options.seed,
            num_images=options.num_images,
            latents=latents,
        )
        timings = stage_seconds(pipeline.timings, pictures[0].parameters.steps)
        peaks = pipeline.timings.peaks()
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    if options.save_latents:
        import numpy as np

        write_array(options.save_latents, np.stack([picture.latents for picture in pictures]))
    timings["total_s"] = time.perf_counter() - began

    parameters = pictures[0].parameters
    document: dict[str, Any] = {
        "files": [str(file) for file in files],
        "latents": str(options.save_latents) if options.save_latents else None,
        "seed": parameters.seed,
        "width": parameters.width,
        "height": parameters.height,
        "steps": parameters.steps,
        "engine": parameters.engine,
        "precision": parameters.precision,
        "checkpoint": parameters.checkpoint,
        "timings": timings,
    }
    if peaks:
        document["peaks"] = {stage: asdict(peak) for stage, peak in peaks.items()}
    spent = ", ".join(
        f"{name.removesuffix('_s').replace('_', ' ')} {seconds:.3g} s" for name, seconds in timings.items()
    )
    noise = "given latents" if parameters.seed is None else f"seed {parameters.seed}"
    summary = f"{parameters.width}x{parameters.height}, {parameters.steps} steps, {noise}, {parameters.engine}: {spent}"
    lines = [*(str(file) for file in files), summary]
    if peaks:
        rows = [
            (stage, size_text(peak.anonymous_bytes), size_text(peak.resident_bytes)) for stage, peak in peaks.items()
        ]
        lines += table([("peak memory", "anonymous", "resident"), *rows], right=(1, 2))
    return Report(document, lines)
