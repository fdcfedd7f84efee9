"""`qwen-image calibrate`: statistics of the inputs of a checkpoint's linears over whole pictures, for static scales."""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.engines.core.files import read_regular
from qwen_image_engine.runtime.cli.shared.arguments import picture_size
from qwen_image_engine.runtime.cli.shared.checkpoint_arguments import add_checkpoint_arguments, open_checkpoint
from qwen_image_engine.runtime.cli.shared.extras import export_packages
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.cli.shared.sensitivity_arguments import (
    add_sensitivity_arguments,
    chosen_sensitivity,
    sensitivity_lines,
)
from qwen_image_engine.runtime.cli.shared.stage_progress import Bar, StageProgress
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION
from qwen_image_engine.runtime.system.files import with_home
from qwen_image_engine.runtime.system.text import plural, table

if TYPE_CHECKING:
    from qwen_image_engine.calibration.observe.record import Calibration
    from qwen_image_engine.calibration.observe.statistics import InputStatistics
    from qwen_image_engine.calibration.sensitivity.analysis import Analysis

SUMMARY = "observe a checkpoint's activations over whole pictures, for static scales"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags. The code that uses the values checks ranges, so that the API has the same errors."""
    parser.add_argument("output", type=Path, metavar="OUT", help="the folder to write, or to go on in")
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--prompts", type=Path, required=True, metavar="FILE", help="UTF-8, one prompt a line; one picture each"
    )
    parser.add_argument(
        "--images",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="a reference image or a folder of them, may be repeated; every second prompt, from the first on, is drawn "
        "with one in turn",
    )
    parser.add_argument(
        "--reference-resolution",
        type=int,
        default=DEFAULT_RESOLUTION,
        metavar="PIXELS",
        help=f"side of a square of the area that each is fitted to ({DEFAULT_RESOLUTION})",
    )
    parser.add_argument("--steps", type=int, help="of each picture (40, or the checkpoint's own)")
    parser.add_argument(
        "--size",
        type=picture_size,
        nargs="+",
        action="extend",
        metavar="WxH",
        help="pixels, multiples of 32; several are taken in turn (1024x1024 1344x768 768x1344)",
    )
    parser.add_argument("--guidance", type=float, help="1 for none (3, or 1 where the checkpoint's sigmas are fixed)")
    parser.add_argument("-n", "--negative-prompt", default="", help="of the second branch; needs guidance (empty)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture's noise, 1 more for each next (0)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="that the networks run on (cpu)")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of weights and arithmetic (fp32)"
    )
    add_sensitivity_arguments(parser)


def execute(options: argparse.Namespace) -> VerbResult:
    """Calibrate. The result appears whole, and the next run resumes an interrupted one.

    Sensitivity is measured afterwards, from the new or the existing calibration.
    """
    with export_packages():
        from qwen_image_engine.calibration.observe.calibrate import calibrate
        from qwen_image_engine.calibration.observe.record import RECORD
        from qwen_image_engine.calibration.observe.request import DEFAULT_SIZES
        from qwen_image_engine.calibration.sensitivity.analysis import analyse

        sensitivity = chosen_sensitivity(options)
    prompts = read_prompts(options.prompts)
    checkpoint = open_checkpoint(options.model, options)
    reused = (with_home(options.output) / RECORD).is_file()
    began = time.perf_counter()
    with StageProgress(_BARS.__getitem__) as progress:
        calibration = calibrate(
            checkpoint,
            options.output,
            prompts,
            images=image_files(options.images),
            reference_resolution=options.reference_resolution,
            steps=options.steps,
            sizes=options.size or DEFAULT_SIZES,
            guidance=options.guidance,
            negative_prompt=options.negative_prompt,
            seed=options.seed,
            device=options.device,
            dtype=options.dtype,
            progress=progress,
        )
        seconds = time.perf_counter() - began
        analysis = None
        if sensitivity is not None:
            analysis = analyse(
                checkpoint,
                calibration,
                options.output,
                prompts,
                target=sensitivity.target,
                precision=sensitivity.precision,
                target_error=sensitivity.target_error,
                device=options.device,
                progress=progress,
            )
    return _report(options.output, calibration, analysis, seconds, reused=reused)


def _report(
    output: Path, calibration: "Calibration", analysis: "Analysis | None", seconds: float, *, reused: bool
) -> VerbResult:
    settings = calibration.settings
    components = {name: _summary(statistics) for name, statistics in calibration.components.items()}
    document: dict[str, Any] = {
        "calibration": str(output),
        **settings.to_json(),
        "sha256": calibration.sha256,
        "reused": reused,
        "components": components,
        "seconds": seconds,
    }
    sizes = ", ".join(f"{width}x{height}" for width, height in settings.sizes)
    lines = [
        f"{output}: {plural(settings.prompts, 'picture')} of {plural(settings.steps, 'step')} at {sizes}, guidance "
        f"{settings.guidance:g}, {settings.dtype} on {settings.device}, "
        f"{'there already' if reused else f'{seconds:.1f} s'}",
        *_component_table(components),
    ]
    if analysis is not None:
        document["sensitivity"] = analysis.to_json()
        lines += sensitivity_lines(analysis)
    return VerbResult(document, lines)


def _component_table(components: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [("component", "activations", "largest magnitude", "in", "channel to mean", "in")]
    rows += [
        (
            name,
            str(found["activations"]),
            f"{found['absmax']['value']:.4g}",
            found["absmax"]["activation"],
            f"{found['channel_to_mean']['value']:.4g}",
            found["channel_to_mean"]["activation"],
        )
        for name, found in components.items()
    ]
    return table(rows, right=(1, 2, 4))


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a file that are not blank, stripped of white space.

    Raises:
        UsageError: the file cannot be read, is not regular, is not UTF-8, or has no such lines.
    """
    try:
        text = read_regular(path, _MAX_PROMPTS_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 (byte {error.start}), expected one prompt a line") from error
    prompts = [line.strip() for line in text.split("\n") if line.strip()]
    if not prompts:
        raise UsageError(f"{path}: holds no prompts, expected one a line")
    return prompts


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the image files of `paths`. A folder stands for its files that are not hidden, sorted by name.

    Raises:
        UsageError: a folder has no files that are not hidden.
    """
    files = []
    for path in paths:
        found = (
            sorted(item for item in path.iterdir() if item.is_file() and item.name[0] != ".") if path.is_dir() else []
        )
        if path.is_dir() and not found:
            raise UsageError(f"{path}: holds no files, expected reference images")
        files += found or [path]
    return files


def _summary(statistics: "Mapping[str, InputStatistics]") -> dict[str, Any]:
    """Return a component's largest magnitude, and the largest ratio of a largest channel to the mean of channels."""
    absmax = {name: float(item.channel_absmax.max()) for name, item in statistics.items()}
    ratios = {name: absmax[name] / float(item.channel_absmax.mean()) for name, item in statistics.items()}
    return {
        "activations": len(statistics),
        "absmax": _largest(absmax),
        "channel_to_mean": _largest(ratios),
    }


def _largest(values: Mapping[str, float]) -> dict[str, Any]:
    name = max(values, key=lambda name: values[name])
    return {"activation": name, "value": values[name]}


_MAX_PROMPTS_BYTES = 16 << 20
_BARS = {
    "hashing": Bar("hashing the checkpoint", "bytes"),
    "sampling": Bar("calibrating", "steps", resumes=True),
    "measuring": Bar("quantising each linear alone", "steps", resumes=True),
    "searching": Bar("searching for the recipe", "steps"),
}
