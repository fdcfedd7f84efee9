"""From a checkpoint and prompts to a calibration, resumed where it was interrupted."""

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
from qwen_image_engine.runtime.system.folder_lock import locked

HASHING, SAMPLING = "hashing", "sampling"
Progress = Callable[[str, int, int], None]
"""Told the stage (`HASHING` in bytes, `SAMPLING` in steps), how much of it is done, and how much there is."""


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
    """Draw every prompt up to its last latents, and keep what each linear reads on the way.

    Prompt i is drawn at `sizes[i % len(sizes)]` from the noise of `seed + i`. After each trajectory the sums so far are
    written to `output`; the same call goes on from there, and its result is that of an uninterrupted one, bit for bit.
    Where `output` holds the finished calibration already, it is opened and returned, on whatever device and with
    whatever versions it was made.

    Args:
        checkpoint: an opened one, or what `Checkpoint.open` takes: folder, hub name, diffusers pipeline.
        output: a new folder, or the one to go on in.
        prompts: one trajectory each.
        images: reference images, files or Pillow's; prompts 0, 2, 4, … are drawn with one of them, in turn, and the
            others without. Where there are none, the result serves bundles that take none.
        reference_resolution: side in pixels of a square of the area that each of them is fitted to.
        steps: of a trajectory; None for 40, or for those of a checkpoint with fixed sigmas.
        sizes: (width, height) in pixels, multiples of 32.
        guidance: 1 for none; above 1 each step runs twice, and both branches count; None for 3, or for 1 where the
            checkpoint has fixed sigmas.
        negative_prompt: of the second branch.
        seed: of the first trajectory's noise.
        device: "cpu" or "cuda".
        dtype: of weights and arithmetic: "fp32", "bf16" or "fp16".
        progress: called as the work goes on.

    Raises:
        UsageError: there is nothing to draw, or something that cannot be drawn, or no such device or dtype here; told
            before any network is loaded.
        QwenImageError: the checkpoint is unsound; `output` holds something else or a calibration of other settings, is
            being written by another process, or cannot be written; an activation is not finite, or zero throughout;
            memory does not suffice.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.open(checkpoint)
    output = Path(output).expanduser().absolute()
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
    """Draw what is not drawn yet; the sums are written after each trajectory."""
    begun = read_partial(output, request.device)
    if begun is not None:
        _check_same(output / PARTIAL, begun.settings.differences(settings, unfinished=True))
    first, sums = (0, empty_sums(request)) if begun is None else (begun.trajectories, begun.sums)
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


def _check_output(output: Path) -> None:
    if output.is_dir():
        found = {path.name for path in output.iterdir()}
        # What a process that was killed left behind.
        found -= {TENSORS, *(temporary_name(name) for name in (RECORD, TENSORS, PARTIAL))}
        if found and found.isdisjoint((RECORD, PARTIAL)):
            raise QwenImageError(
                f"{output}: is a folder with other things in it and no calibration ({RECORD}, {PARTIAL}); "
                "name a new folder, or remove it first"
            )
    elif output.exists() or output.is_symlink():
        raise QwenImageError(f"{output}: is a file, expected a new folder or one with a calibration")


@contextmanager
def _held(output: Path) -> Iterator[None]:
    """Create and lock the folder during the block; a failure that leaves it empty removes the folders created here.

    Raises:
        FolderBusyError: another process holds the lock.
        OSError: the folder cannot be created.
    """
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        with locked(output, "another calibration is writing it; wait for its end, or name another folder"):
            yield
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise
