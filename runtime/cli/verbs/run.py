"""`qwen-image run`: the generation of pictures with a bundle's engines."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from qwen_image_engine.engines.backends import BACKENDS, ENGINES
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.engines.core.files import is_stream
from qwen_image_engine.engines.tensorrt.package import KernelSpecialization
from qwen_image_engine.runtime.cli.shared.arguments import spacing, whole_numbers
from qwen_image_engine.runtime.cli.shared.output_files import picture_paths, read_latents
from qwen_image_engine.runtime.cli.shared.picture_again import differences, take_parameters
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.cli.shared.text import stage_seconds
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION
from qwen_image_engine.runtime.sampling.fast import FAST
from qwen_image_engine.runtime.sampling.solver import SOLVERS
from qwen_image_engine.runtime.sampling.spacing import SPACINGS
from qwen_image_engine.runtime.system.files import check_writable, write_array
from qwen_image_engine.runtime.system.progress import ProgressBar
from qwen_image_engine.runtime.system.text import plural, size_text, table

if TYPE_CHECKING:
    from qwen_image_engine.runtime.images.parameters import PictureParameters
    from qwen_image_engine.runtime.images.picture import Picture
    from qwen_image_engine.runtime.pipeline import QwenImage
    from qwen_image_engine.runtime.request import Request
    from qwen_image_engine.runtime.sampling.step import Step
    from qwen_image_engine.runtime.system.memory_use import MemoryUse

SUMMARY = "draw pictures with a bundle's engines"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags. The code that uses the values checks ranges, so that the API has the same errors."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "-p", "--prompt", help="what to draw, at most 1,100 tokens; may be empty; required but for --from"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .png; several become out-0.png, …")
    parser.add_argument(
        "--from",
        dest="picture",
        type=Path,
        metavar="PICTURE.png",
        help="draw a picture of this command again; other flags take the place of its parameters",
    )
    _add_reference_arguments(parser)
    parser.add_argument(
        "-W",
        "--width",
        type=int,
        help="pixels, a multiple of 32 (1024, or as the last reference, with --mask the first; with -H alone, its "
        "aspect ratio is kept)",
    )
    parser.add_argument("-H", "--height", type=int, help="likewise")
    parser.add_argument("-s", "--steps", type=int, help="of the solver (40, or the checkpoint's own)")
    parser.add_argument(
        "--solver",
        choices=SOLVERS,
        help="of the sampling equation; heun evaluates the network twice a step, the others once (euler)",
    )
    add_sigmas_argument(parser)
    parser.add_argument(
        "--fast",
        action="store_true",
        help=f"--solver {FAST.solver} -s {FAST.steps}; docs/fewer-steps.md has figures of it and of 40 steps of euler",
    )
    parser.add_argument(
        "--seed",
        type=whole_numbers,
        metavar="S[,S…]",
        help="of the noise, the same on every engine (0); -1 is a seed like any other; several are drawn one after the "
        "other, from one encoding",
    )
    parser.add_argument("-n", "--negative-prompt", help="what to steer away from; needs --guidance above 1")
    parser.add_argument("--guidance", type=float, help="1 for none; above 1 each step runs twice (1)")
    parser.add_argument("--num-images", type=int, choices=range(1, 5), help="drawn as one batch (1)")
    parser.add_argument(
        "--latents", type=Path, metavar="IN.npy", help="initial noise: float32 (batch, tokens, channels)"
    )
    parser.add_argument("--save-latents", type=Path, metavar="OUT.npy", help="write the final latents likewise")
    add_engine_arguments(parser)
    add_kernel_specialization_argument(parser)
    parser.set_defaults(engine=None)  # a picture of --from names its own
    parser.add_argument(
        "--memory",
        choices=("resident", "sequential"),
        default="resident",
        help="keep every engine loaded, or one at a time (resident)",
    )
    parser.add_argument("--measure-memory", action="store_true", help="report each stage's peak; Linux alone tells")


def _add_reference_arguments(parser: argparse.ArgumentParser) -> None:
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
        metavar="PIXELS",
        help=f"side of a square of the area that each is fitted to ({DEFAULT_RESOLUTION})",
    )
    parser.add_argument(
        "--mask",
        type=Path,
        metavar="MASK.png",
        help="edit the first reference image where this picture of the same size is transparent, and nowhere else",
    )
    parser.add_argument(
        "--first-frame", action="store_true", help="take the first frame of an animation, or the first page of a TIFF"
    )


def add_sigmas_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the flag of every verb that samples."""
    parser.add_argument(
        "--sigmas",
        type=spacing,
        metavar="S,S…|NAME",
        help="noise levels from at most 1 down, without the final 0, which the checkpoint still shifts; or a spacing: "
        f"{', '.join(SPACINGS)} (the checkpoint's own)",
    )


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of every verb that runs engines."""
    needs = [f"{row.name} needs {row.computes} instructions" for row in BACKENDS.values() if row.computes]
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime", help=f"{'; '.join(needs)} (onnxruntime)")
    parser.add_argument("--threads", type=int, help="of one engine (every core)")


def add_kernel_specialization_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the flag of verbs that draw with tensorrt-rtx."""
    parser.add_argument(
        "--kernel-specialization",
        choices=get_args(KernelSpecialization),
        help="of tensorrt-rtx: compile kernels for the shapes of a call in the background, while others serve, or "
        "before it runs (lazy)",
    )


def execute(options: argparse.Namespace) -> VerbResult:
    """Generate all pictures, then write the files. If a picture fails, nothing is written."""
    from qwen_image_engine.runtime.pipeline import QwenImage
    from qwen_image_engine.runtime.system.memory_use import MemoryWatch

    _take_preset(options)
    again = take_parameters(options)
    files = _output_files(options)
    with MemoryWatch() if options.measure_memory else nullcontext() as watch:
        pipeline = QwenImage.open(
            options.bundle,
            engine=options.engine,
            memory=options.memory,
            threads=options.threads,
            watch=watch,
            kernel_specialization=options.kernel_specialization,
        )
        with pipeline:
            requests = _requests(options, pipeline)  # everything that can be refused is, before gigabytes are loaded
            if again is not None:
                _tell_differences(options, again, pipeline, requests[0])
            pipeline.preload()
            began = time.perf_counter()
            drawn: list[_Drawn] = []
            for request in requests:  # the first one's times hold the loads
                first = len(pipeline.timings.entries) if drawn else 0
                drawn.append(_draw(pipeline, request, first, options.image))
            peaks = pipeline.timings.peaks()
    pictures = [picture for item in drawn for picture in item.pictures]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    if options.save_latents:
        import numpy as np

        write_array(options.save_latents, np.stack([picture.latents for picture in pictures]))
    total_s = time.perf_counter() - began
    document = _document(options, requests[0], drawn, files, total_s)
    if peaks:
        document["peaks"] = {stage: asdict(peak) for stage, peak in peaks.items()}
    return VerbResult(document, _lines(document, peaks))


@dataclass(frozen=True)
class _Drawn:
    """The pictures of one seed, and the seconds of each stage."""

    pictures: "list[Picture]"
    timings: dict[str, float]


def _take_preset(options: argparse.Namespace) -> None:
    """Fill in the flags that `--fast` stands for.

    Raises:
        UsageError: another flag says the same in another way.
    """
    if not options.fast:
        return
    given = [
        flag
        for flag, value in (("--solver", options.solver), ("-s", options.steps), ("--sigmas", options.sigmas))
        if value is not None
    ]
    if given:
        raise UsageError(
            f"--fast beside {' and '.join(given)}: --fast is --solver {FAST.solver} -s {FAST.steps} on the "
            "checkpoint's own sigmas; leave one out"
        )
    options.solver, options.steps, options.sigmas = FAST.solver, FAST.steps, "model"


def _output_files(options: argparse.Namespace) -> list[Path]:
    """Check the names of all files that will be written, and return the paths of the pictures.

    Raises:
        UsageError: a name has the wrong ending, or initial noise is given together with several seeds.
        QwenImageError: a file could not be written.
    """
    if options.latents and len(options.seed) > 1:
        raise UsageError(f"--latents is the noise of one picture, and there are {len(options.seed)} seeds")
    files = picture_paths(options.output, _pictures_a_request(options) * len(options.seed))
    if options.save_latents and options.save_latents.suffix != ".npy" and not is_stream(options.save_latents):
        raise UsageError(f"--save-latents {options.save_latents}: expected a name that ends in .npy")
    check_writable(*files, *([options.save_latents] if options.save_latents else []))
    return files


def _pictures_a_request(options: argparse.Namespace) -> int:
    return options.num_images if options.image is None else 1


def _requests(options: argparse.Namespace, pipeline: "QwenImage") -> "list[Request]":
    """Prepare the request of each seed.

    Raises:
        UsageError: the request is invalid.
        QwenImageError: the latents cannot be read, or memory does not suffice.
    """
    first, *others = options.seed
    own = pipeline.schedule.sample_sigmas
    if options.fast and own is not None and len(own) <= FAST.steps:
        raise UsageError(f"--fast is {FAST.steps} steps, and this checkpoint is made for {len(own)}; leave --fast out")
    request = pipeline.prepare(
        options.prompt,
        negative_prompt=options.negative_prompt,
        references=options.reference,
        reference_resolution=options.reference_resolution,
        first_frame=options.first_frame,
        mask=options.mask,
        guidance=options.guidance,
        width=options.width,
        height=options.height,
        steps=options.steps,
        solver=options.solver,
        sigmas=options.sigmas,
        seed=first,
        num_images=options.num_images,
        latents=None if options.latents is None else read_latents(options.latents),
    )
    requests = [request, *(request.with_seed(seed) for seed in others)]
    if request.references.images:
        cache = request.cache_bytes
        held = f", {size_text(cache)} of keys and values" if cache else ""
        print(f"{request.prefix_tokens} tokens before the target{held}", file=sys.stderr, flush=True)
    return requests


def _tell_differences(
    options: argparse.Namespace, again: "PictureParameters", pipeline: "QwenImage", request: "Request"
) -> None:
    found = differences(options, again, pipeline.origin, request)
    if found:
        line = f"{options.picture} was drawn {', and '.join(found)}: the new picture will differ"
        print(line, file=sys.stderr, flush=True)


def _draw(pipeline: "QwenImage", request: "Request", first: int, image: int | None) -> _Drawn:
    """Draw the pictures of one request, with a progress bar. Keep the picture of index `image`, or all if None.

    The times are those of the entries from index `first`.
    """
    steps = request.inputs.steps
    with ExitStack() as stack:
        stack.enter_context(ProgressBar("reading the prompt", 0))
        bars: list[ProgressBar] = []

        def advance(step: "Step") -> None:
            if not bars:
                stack.close()
                bars.append(stack.enter_context(ProgressBar("drawing", steps)))
            bars[0].advance()
            if step.index + 1 == steps:
                stack.close()
                stack.enter_context(ProgressBar("decoding", 0))

        pictures = pipeline.generate(request, on_step=advance)
    pictures = pictures if image is None else [pictures[image]]
    return _Drawn(pictures, stage_seconds(pipeline.timings.entries[first:], request.inputs.evaluations_by_step))


def _document(
    options: argparse.Namespace, request: "Request", drawn: Sequence[_Drawn], files: Sequence[Path], total_s: float
) -> dict[str, Any]:
    parameters = drawn[0].pictures[0].parameters
    count = _pictures_a_request(options)
    requests = [
        {
            "seed": item.pictures[0].parameters.seed,
            "files": [str(file) for file in files[index * count : (index + 1) * count]],
            "timings": item.timings,
        }
        for index, item in enumerate(drawn)
    ]
    return {
        "files": [str(file) for file in files],
        "latents": str(options.save_latents) if options.save_latents else None,
        "seed": parameters.seed,
        "width": parameters.width,
        "height": parameters.height,
        "steps": parameters.steps,
        "solver": parameters.solver,
        "evaluations": parameters.evaluations,
        "sigmas": [float(level) for level in request.inputs.sigmas],
        "references": [
            {"file": str(file), "width": image.rgba.shape[1], "height": image.rgba.shape[0], "sha256": image.sha256}
            for file, image in zip(options.reference, request.references.images, strict=True)
        ],
        "mask": {"file": str(options.mask), "sha256": request.mask.sha256} if request.mask else None,
        "prefix_tokens": request.prefix_tokens,
        "cache_bytes": request.cache_bytes,
        "engine": parameters.engine,
        "precision": parameters.precision,
        "checkpoint": parameters.checkpoint,
        "timings": drawn[0].timings,
        "requests": requests,
        "total_s": total_s,
    }


def _lines(document: Mapping[str, Any], peaks: "Mapping[str, MemoryUse]") -> list[str]:
    lines = list(document["files"])
    taken = (
        f"{plural(document['steps'], 'step')} of {document['solver']} ({plural(document['evaluations'], 'evaluation')})"
    )
    for request in document["requests"]:
        noise = "given latents" if request["seed"] is None else f"seed {request['seed']}"
        spent = ", ".join(_spent(name, seconds) for name, seconds in request["timings"].items() if seconds)
        size = f"{document['width']}x{document['height']}"
        lines.append(f"{size}, {taken}, {noise}, {document['engine']}: {spent}")
    lines.append(_spent("total_s", document["total_s"]))
    if peaks:
        rows = [
            (stage, size_text(peak.anonymous_bytes), size_text(peak.resident_bytes)) for stage, peak in peaks.items()
        ]
        lines += table([("peak memory", "anonymous", "resident"), *rows], right=(1, 2))
    return lines


def _spent(name: str, seconds: float) -> str:
    return f"{name.removesuffix('_s').replace('_', ' ')} {seconds:.3g} s"
