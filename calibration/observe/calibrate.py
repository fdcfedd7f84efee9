"""The calibration of a checkpoint on prompts. An interrupted calibration can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from qwen_image_engine.calibration.observe.partial import PARTIAL, Partial, Sums, read_partial, write_partial
from qwen_image_engine.calibration.observe.record import (
    RECORD,
    TENSORS,
    Calibration,
    check_statistics,
    load,
    read_record,
    write,
)
from qwen_image_engine.calibration.observe.request import DEFAULT_SIZES, Request
from qwen_image_engine.calibration.observe.settings import Settings
from qwen_image_engine.calibration.observe.tensor_file import temporary_name
from qwen_image_engine.calibration.observe.trajectories import Trajectories, empty_sums
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint, Source
from qwen_image_engine.runtime.images.read import ReferenceSource
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION
from qwen_image_engine.runtime.system.files import with_home
from qwen_image_engine.runtime.system.folder_lock import locked

LOCK = ".lock"
"""Name of the lock file in the folder of a calibration that is being written."""

HASHING, SAMPLING = "hashing", "sampling"
Progress = Callable[[str, int, int], None]
"""A function of progress: the stage (`HASHING` in bytes, `SAMPLING` in steps), the amount done, and the total."""


def calibrate(
    checkpoint: Checkpoint | Source,
    output: str | Path,
    prompts: Sequence[str],
    *,
    images: Sequence[ReferenceSource] = (),
    reference_resolution: int = DEFAULT_RESOLUTION,
    steps: int | None = None,
    sizes: Sequence[tuple[int, int]] = DEFAULT_SIZES,
    guidance: float | None = None,
    negative_prompt: str = "",
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "fp32",
    progress: Progress | None = None,
) -> Calibration:
    """Draw every prompt up to its last latents, and collect statistics of the activations of each linear.

    Prompt i is drawn at `sizes[i % len(sizes)]` from the noise of `seed + i`. After each trajectory, the sums so far
    are written to `output`. The same call resumes from there, and its result is bit for bit equal to the result of an
    uninterrupted call. If `output` contains the finished calibration already, it is opened and returned, whatever
    device and versions it was made with.

    Args:
        checkpoint: an opened checkpoint, or an argument of `Checkpoint.open`: folder, hub name, diffusers pipeline.
        output: a new folder, or the folder of the calibration to resume.
        prompts: prompts, one trajectory each.
        images: reference images, as files or Pillow images. Prompts 0, 2, 4, … are drawn with one of them, in turn, and
            the other prompts without. If there are none, the result is for bundles without reference images.
        reference_resolution: side of a square of the area that each reference image is fitted to [pixels].
        steps: steps of a trajectory; None for 40, or for the steps of a checkpoint with fixed sigmas.
        sizes: (width, height) in pixels, multiples of 32.
        guidance: guidance scale; 1 for no guidance. Above 1 each step runs twice, and both branches count. None for 3,
            or for 1 if the checkpoint has fixed sigmas.
        negative_prompt: prompt of the second branch.
        seed: seed of the first trajectory's noise.
        device: "cpu" or "cuda".
        dtype: dtype of weights and arithmetic: "fp32", "bf16" or "fp16".
        progress: function that is called as the work goes on.

    Raises:
        UsageError: there is nothing to draw, a request cannot be drawn, or the device or the dtype is unknown or not
            available here; this is checked before any network is loaded.
        QwenImageError: the checkpoint is invalid; `output` contains other files or a calibration of other settings, is
            being written by another process, or cannot be written; an activation is not finite or is zero
            everywhere; or memory is too small.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.open(checkpoint)
    output = with_home(output).absolute()
    request = Request.of(
        checkpoint,
        prompts,
        images=images,
        reference_resolution=reference_resolution,
        steps=steps,
        sizes=sizes,
        guidance=guidance,
        negative_prompt=negative_prompt,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    _check_output(output)
    try:
        with _held(output):  # before the checkpoint is hashed: a folder that cannot be written is told at once
            return _calibrate(request, output, progress)
    except torch.OutOfMemoryError as error:
        raise QwenImageError(
            f"{device} has too little memory for {checkpoint.name} in {dtype} at these sizes; "
            "ask for --dtype bf16, a smaller --size, or --device cpu"
        ) from error
    except OSError as error:
        raise QwenImageError(f"{output}: cannot be written ({error.strerror or error})") from error


def _calibrate(request: Request, output: Path, progress: Progress | None) -> Calibration:
    settings = _settings(request, progress)
    if (output / RECORD).is_file():
        record = read_record(output)
        _check_same(output, record.settings.differences(settings))
        (output / PARTIAL).unlink(missing_ok=True)  # of a process that was killed after it had written the record
        return load(output, record, request.checkpoint)
    sums = _observe(request, settings, output, progress)
    components = {
        component: {name: item.statistics() for name, item in activations.items()}
        for component, activations in sums.items()
    }
    check_statistics("this calibration", components, request.checkpoint, settings)
    result = write(output, components, settings)
    (output / PARTIAL).unlink(missing_ok=True)
    return result


def _settings(request: Request, progress: Progress | None) -> Settings:
    if progress is None:
        return request.settings()
    total, done = sum(file.stat().st_size for file in request.checkpoint.weight_files), 0

    def hashed(count: int) -> None:
        nonlocal done
        done += count
        progress(HASHING, done, total)

    return request.settings(hashed)


def _observe(request: Request, settings: Settings, output: Path, progress: Progress | None) -> Sums:
    """Draw the trajectories that are not drawn yet, and write the sums after each trajectory."""
    begun = read_partial(output, request.device)
    if begun is not None:
        _check_same(output / PARTIAL, begun.settings.differences(settings, unfinished=True))
    first, sums = 0, empty_sums(request)
    if begun is not None:
        _check_sums(output / PARTIAL, begun.sums, sums)
        first, sums = begun.trajectories, begun.sums
    count = len(request.prompts)
    if first == count:  # interrupted before the result was written
        return sums
    trajectories = Trajectories(request, sums)
    if progress is not None:
        progress(SAMPLING, first * request.steps, count * request.steps)
    for index in range(first, count):
        for taken in trajectories.draw(index):
            if progress is not None:
                progress(SAMPLING, index * request.steps + taken, count * request.steps)
        write_partial(output, Partial(settings, index + 1, sums))
    return sums


def _check_same(path: Path, differences: str) -> None:
    if differences:
        raise QwenImageError(
            f"{path}: was made with {differences}; ask for the same, name another folder, or remove it first"
        )


def _check_sums(path: Path, found: Sums, expected: Sums) -> None:
    """Raise if the sums of an unfinished calibration are of other activations than this one observes."""
    for component, activations in expected.items():
        for name, sums in activations.items():
            begun = found.get(component, {}).get(name)
            if begun is None or not begun.fits(sums):
                state = "missing" if begun is None else "of another shape"
                raise QwenImageError(f"{path}: the sums of {component}, {name} are {state}; remove it to begin again")


def _check_output(output: Path) -> None:
    if output.is_dir():
        found = {path.name for path in output.iterdir()}
        # What a process that was killed left behind.
        found -= {LOCK, TENSORS, *(temporary_name(name) for name in (RECORD, TENSORS, PARTIAL))}
        if found and found.isdisjoint((RECORD, PARTIAL)):
            raise QwenImageError(
                f"{output}: is a folder with other things in it and no calibration ({RECORD}, {PARTIAL}); "
                "name a new folder, or remove it first"
            )
    elif output.exists() or output.is_symlink():
        raise QwenImageError(f"{output}: is a file, expected a new folder or one with a calibration")


@contextmanager
def _held(output: Path) -> Iterator[None]:
    """Create the folder and lock it during the block.

    If the block fails and leaves the folder empty, the folders created here are removed.

    Raises:
        FolderBusyError: another process holds the lock.
        OSError: the folder cannot be created.
    """
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        busy = f"{output}: another calibration is writing it; wait for its end, or name another folder"
        with locked(output / LOCK, busy):
            yield
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise
