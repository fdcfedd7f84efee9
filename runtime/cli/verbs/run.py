"""`qwen-image run`: draw pictures with a bundle's engines."""

import argparse
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_image_engine.engines.backends import BACKENDS, ENGINES
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.cli.shared.arguments import whole_numbers
from qwen_image_engine.runtime.cli.shared.output_files import picture_paths, read_latents
from qwen_image_engine.runtime.cli.shared.result import Report
from qwen_image_engine.runtime.cli.shared.text import stage_seconds
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION
from qwen_image_engine.runtime.system.files import check_writable, write_array
from qwen_image_engine.runtime.system.text import size_text, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qwen_image_engine.runtime.bundle.bundle import Bundle
    from qwen_image_engine.runtime.images.picture import Picture
    from qwen_image_engine.runtime.images.reference_image import ReferenceImages

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
    parser.add_argument(
        "--seed",
        type=whole_numbers,
        default=(0,),
        metavar="S[,S…]",
        help="of the noise, the same on every engine (0); several are drawn one after the other, from one encoding",
    )
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
    needs = [f"{row.name} needs {row.computes} instructions" for row in BACKENDS.values() if row.computes]
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime", help=f"{'; '.join(needs)} (onnxruntime)")
    parser.add_argument("--threads", type=int, help="of one engine (every core)")


def execute(options: argparse.Namespace) -> Report:
    """Draw; nothing is written unless every picture could be drawn."""
    from qwen_image_engine.runtime.bundle.bundle import Bundle
    from qwen_image_engine.runtime.pipeline import QwenImage
    from qwen_image_engine.runtime.system.memory_use import MemoryWatch

    # Everything that can be refused is, before gigabytes are loaded.
    seeds = options.seed
    if options.latents and len(seeds) > 1:
        raise UsageError(f"--latents is the noise of one picture, and there are {len(seeds)} seeds")
    files = picture_paths(options.output, options.num_images * len(seeds))
    if options.save_latents and options.save_latents.suffix != ".npy":
        raise UsageError(f"--save-latents {options.save_latents}: expected a name that ends in .npy")
    check_writable(*files, *([options.save_latents] if options.save_latents else []))
    latents = None if options.latents is None else read_latents(options.latents)
    bundle = Bundle.open(options.bundle)
    references = bundle.read_references(options.reference, options.reference_resolution)
    width, height = references.picture_size(options.width, options.height)
    tokens, cache_bytes = _check(options, bundle, references, width, height, latents)
    if references.images:
        held = f", {size_text(cache_bytes)} of keys and values" if cache_bytes else ""
        print(f"{tokens} tokens before the target{held}", file=sys.stderr, flush=True)

    began = time.perf_counter()
    requests: list[dict[str, Any]] = []
    pictures: list[Picture] = []
    with (
        MemoryWatch() if options.measure_memory else nullcontext() as watch,
        QwenImage.load(
            bundle, engine=options.engine, memory=options.memory, threads=options.threads, watch=watch
        ) as pipeline,
    ):
        for seed in seeds:
            done = len(pipeline.timings.entries) if requests else 0
            pictures += pipeline.generate(
                options.prompt,
                negative_prompt=options.negative_prompt,
                references=references,
                guidance=options.guidance,
                width=width,
                height=height,
                steps=options.steps,
                seed=seed,
                num_images=options.num_images,
                latents=latents,
            )
            parameters = pictures[-1].parameters
            timings = stage_seconds(pipeline.timings.entries[done:], parameters.steps)
            names = files[len(pictures) - options.num_images : len(pictures)]
            requests.append({"seed": parameters.seed, "files": list(map(str, names)), "timings": timings})
        peaks = pipeline.timings.peaks()
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    if options.save_latents:
        import numpy as np

        write_array(options.save_latents, np.stack([picture.latents for picture in pictures]))
    total_s = time.perf_counter() - began

    parameters = pictures[0].parameters
    document: dict[str, Any] = {
        "files": [str(file) for file in files],
        "latents": str(options.save_latents) if options.save_latents else None,
        "seed": parameters.seed,
        "width": parameters.width,
        "height": parameters.height,
        "steps": parameters.steps,
        "references": [
            {"file": str(file), "width": image.rgba.shape[1], "height": image.rgba.shape[0], "sha256": image.sha256}
            for file, image in zip(options.reference, references.images, strict=True)
        ],
        "prefix_tokens": tokens,
        "cache_bytes": cache_bytes,
        "engine": parameters.engine,
        "precision": parameters.precision,
        "checkpoint": parameters.checkpoint,
        "timings": requests[0]["timings"],
        "requests": requests,
        "total_s": total_s,
    }
    if peaks:
        document["peaks"] = {stage: asdict(peak) for stage, peak in peaks.items()}
    lines = [str(file) for file in files]
    for request in requests:
        noise = "given latents" if request["seed"] is None else f"seed {request['seed']}"
        spent = ", ".join(_spent(name, seconds) for name, seconds in request["timings"].items() if seconds)
        lines.append(f"{width}x{height}, {parameters.steps} steps, {noise}, {parameters.engine}: {spent}")
    lines.append(_spent("total_s", total_s))
    if peaks:
        rows = [
            (stage, size_text(peak.anonymous_bytes), size_text(peak.resident_bytes)) for stage, peak in peaks.items()
        ]
        lines += table([("peak memory", "anonymous", "resident"), *rows], right=(1, 2))
    return Report(document, lines)


def _check(
    options: argparse.Namespace,
    bundle: "Bundle",
    references: "ReferenceImages",
    width: int,
    height: int,
    latents: "NDArray[np.float32] | None",
) -> tuple[int, int]:
    """Tokens before the target, and the bytes of all their keys and values; of a request that can be drawn.

    Raises:
        UsageError: it cannot.
        QwenImageError: there is no memory for it.
    """
    from qwen_image_engine.runtime.conditioning import cache_bytes, check_memory, prefix_tokens
    from qwen_image_engine.runtime.denoiser import check_guidance
    from qwen_image_engine.runtime.sampling.inputs import Start
    from qwen_image_engine.runtime.text.prompt import tokenize

    facts, schedule, tokenizer = bundle.manifest.facts, bundle.schedule(), bundle.tokenizer
    check_guidance(options.guidance, options.negative_prompt is not None)
    for seed in options.seed:
        Start.of(schedule, facts.channels, width, height, options.steps, seed, options.num_images, latents)
    blocks = [image.block for image in references.images]
    prompts = [options.prompt, *([] if options.negative_prompt is None else [options.negative_prompt])]
    tokens = [tokenize(tokenizer, prompt, blocks) for prompt in prompts]
    check_memory(tokens, facts, options.engine)
    lengths = list(map(prefix_tokens, tokens))
    copies = 1 if options.num_images == 1 else 1 + options.num_images
    return lengths[0], cache_bytes(sum(lengths), facts, options.engine) * copies


def _spent(name: str, seconds: float) -> str:
    return f"{name.removesuffix('_s').replace('_', ' ')} {seconds:.3g} s"
