"""The sensitivity analysis of a calibration, and the recipe for a target error. Files are written to one folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qwen_image_engine.calibration.observe.record import Calibration
from qwen_image_engine.calibration.observe.request import DTYPES, Request, prompts_sha256, versions
from qwen_image_engine.calibration.observe.settings import Settings
from qwen_image_engine.calibration.observe.tensor_file import write_whole
from qwen_image_engine.calibration.quantise.network import quantised_network
from qwen_image_engine.calibration.rules.quantisation import Quantisation
from qwen_image_engine.calibration.sensitivity.partial import PartialSensitivity
from qwen_image_engine.calibration.sensitivity.plot import plot
from qwen_image_engine.calibration.sensitivity.search import FoundRecipe, fewest_high
from qwen_image_engine.calibration.sensitivity.sensitivity import Picture, Sensitivity
from qwen_image_engine.calibration.sensitivity.simulation import TRANSFORMER, Simulation
from qwen_image_engine.calibration.sensitivity.teacher_forcing import Errors, TeacherForcing, record
from qwen_image_engine.engines.core.entries import load_entry
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import load_network
from qwen_image_engine.reference.networks.transformer import Transformer

PICTURES = 2
"""Number of pictures: the calibration's first two, at two of the sizes. Each of 224 linears runs every step again."""

MEASURING, SEARCHING = "measuring", "searching"
Progress = Callable[[str, int, int], None]
"""A function of progress: the stage (`MEASURING` or `SEARCHING`, both in steps), the amount done, and the total. Each
run of a search counts from the beginning."""


@dataclass(frozen=True)
class Analysis:
    """The result of an analysis and the paths of the written files.

    Attributes:
        sensitivity: sensitivity of every linear.
        json: file of `Sensitivity.to_json` with the result of the search.
        svg: file of the plot.
        found: the recipe; None without a search.
        recipe: file of the recipe, which an export reads; None without a search.
    """

    sensitivity: Sensitivity
    json: Path
    svg: Path
    found: FoundRecipe | None = None
    recipe: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the sensitivity as plain JSON, with the result of the search under "search"."""
        return self.sensitivity.to_json() | ({} if self.found is None else {"search": self.found.to_json()})


def _quantisations() -> Mapping[tuple[str, str], Quantisation]:
    """Return the rules by target and precision from the table of targets. The table's package is above this package."""
    rows = load_entry("export.targets:TARGETS").items()
    return {pair: row.quantisation for pair, row in rows if row.quantisation is not None and not row.twin}


def check_analysis(target: str, precision: str, target_error: float | None) -> None:
    """Check the arguments that do not depend on the checkpoint.

    Raises:
        UsageError: nothing is quantised for this target and precision, or `target_error` is not a positive number.
    """
    quantisations = _quantisations()
    if (target, precision) not in quantisations:
        known = ", ".join(f"--target {target} --precision {precision}" for target, precision in quantisations)
        raise UsageError(f"no sensitivity for target {target!r} in precision {precision!r}; known: {known}")
    if target_error is not None and not (math.isfinite(target_error) and target_error > 0):
        raise UsageError(f"--target-error {target_error:g}: expected a relative error above 0, such as 0.01 for 1%")


def analyse(
    checkpoint: Checkpoint,
    calibration: Calibration,
    folder: Path,
    prompts: Sequence[str],
    *,
    target: str = "tensorrt",
    precision: str = "fp8",
    target_error: float | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Analysis:
    """Measure every linear of the transformer alone, and search for a recipe if `target_error` is given.

    The first `PICTURES` of the calibration's prompts without a reference image are drawn in the calibration's dtype, on
    any device. The text encoder stays unquantised. After each linear, the errors so far are written to `folder`. The
    same call resumes from there and has the result of an uninterrupted call. Errors from another calibration, device
    or version are ignored and replaced.

    Args:
        checkpoint: the calibrated checkpoint.
        calibration: the checkpoint's calibration.
        folder: folder of the files: sensitivity-TARGET-PRECISION.json and .svg, and with a search
            recipe-TARGET-PRECISION.json. Each file is written completely or not at all.
        prompts: prompts of the calibration.
        target: target whose quantisation is simulated.
        precision: precision of the target.
        target_error: largest error that the recipe may have, see `judged`; None for no search.
        device: "cpu" or "cuda".
        progress: function that is called as the work goes on.

    Raises:
        UsageError: nothing is quantised for this target and precision, `target_error` is not a positive number, the
            prompts are not the prompts of the calibration, every prompt is drawn with a reference image, attention is
            bidirectional, or the device is not available here.
        QwenImageError: the calibration is of another checkpoint, a step's output is not finite, no recipe reaches the
            error, memory is too small, or a file cannot be written.
    """
    check_analysis(target, precision, target_error)
    if checkpoint.transformer.bidirectional:
        raise UsageError("sensitivity is not implemented for bidirectional attention; leave out --sensitivity")
    settings = replace(calibration.settings, device=device, versions=versions())
    if prompts_sha256(prompts) != settings.prompts_sha256:
        raise UsageError(
            f"the {len(prompts)} prompts are not the {settings.prompts} that the calibration was made with"
        )
    drawn = prompts[1::2] if settings.images else prompts  # the others have reference images
    if not drawn:
        raise UsageError("sensitivity is measured on prompts without a reference image; calibrate with two or more")
    name = f"{target}-{precision}"
    try:
        forcing, pictures, linears = _prepare(checkpoint, calibration, settings, drawn, target, precision)
        partial = PartialSensitivity.of(folder, target, precision, settings, calibration.sha256, pictures)
        alone, together = _measure(forcing, linears, partial, progress)
        sensitivity = Sensitivity(target, precision, settings, calibration.sha256, pictures, alone, together)
        analysis = Analysis(sensitivity, folder / f"sensitivity-{name}.json", folder / f"sensitivity-{name}.svg")
        _write(analysis)
        partial.remove()
        if target_error is None:
            return analysis

        def measure(quantised: tuple[str, ...]) -> Errors:
            return forcing.errors(quantised, _advance(progress, SEARCHING, forcing.steps))

        found = fewest_high(sensitivity, target_error, measure)
        analysis = Analysis(sensitivity, analysis.json, analysis.svg, found, folder / f"recipe-{name}.json")
        _write(analysis)
        return analysis
    except torch.OutOfMemoryError as error:
        raise QwenImageError(
            f"{device} has too little memory to analyse {checkpoint.name} in {settings.dtype} at these sizes; "
            "ask for --device cpu, or calibrate with --dtype bf16 or a smaller --size"
        ) from error


def _prepare(
    checkpoint: Checkpoint,
    calibration: Calibration,
    settings: Settings,
    prompts: Sequence[str],
    target: str,
    precision: str,
) -> tuple[TeacherForcing, tuple[Picture, ...], list[str]]:
    """Return the teacher forcing that measures linears, the pictures, and the linears' names."""
    request = Request.of(
        checkpoint,
        prompts[:PICTURES],
        steps=settings.steps,
        sizes=settings.sizes,
        guidance=settings.guidance,
        negative_prompt=settings.negative_prompt or "",
        seed=settings.seeds[0],
        device=settings.device,
        dtype=settings.dtype,
    )
    network = load_network(checkpoint, TRANSFORMER, DTYPES[settings.dtype]).to(settings.device)
    assert isinstance(network, Transformer)
    quantised = quantised_network(checkpoint, TRANSFORMER, _quantisations()[target, precision], calibration)
    trajectories = record(request, network)
    forcing = TeacherForcing(Simulation(checkpoint, network, quantised), trajectories)
    pictures = tuple(Picture(item.prompt, item.size, item.seed, item.sigmas) for item in trajectories)
    return forcing, pictures, list(quantised.layers)


def _measure(
    forcing: TeacherForcing, linears: Sequence[str], partial: PartialSensitivity, progress: Progress | None
) -> tuple[dict[str, Errors], Errors]:
    """Measure each linear alone and all linears together.

    Linears in `partial` are not measured again, and `partial` is written after every linear.
    """
    alone = partial.read()
    done, total = len(alone) * forcing.steps, (len(linears) + 1) * forcing.steps
    if progress is not None:
        progress(MEASURING, done, total)
    advance = _advance(progress, MEASURING, total, done)
    for name in linears:
        if name not in alone:
            alone[name] = forcing.errors([name], advance)
            partial.write(alone)
    return alone, forcing.errors(linears, advance)


def _advance(progress: Progress | None, stage: str, total: int, done: int = 0) -> Callable[[], None]:
    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(stage, done, total)

    return advance


def _write(analysis: Analysis) -> None:
    _write_json(analysis.json, analysis.to_json())
    write_whole(analysis.svg, plot(analysis.sensitivity).encode())
    if analysis.found is not None and analysis.recipe is not None:
        _write_json(analysis.recipe, analysis.found.rules())


def _write_json(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text.encode())
