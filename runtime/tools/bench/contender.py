"""Contenders of a benchmark: a contender loads once, draws requests, and times its own stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.images.png import png_bytes
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.system.memory_use import MemoryUse, MemoryWatch
from qwen_image_engine.runtime.system.run_queue import longest_run_queue_wait, run_queue_wait_s
from qwen_image_engine.runtime.timing import Timings
from qwen_image_engine.runtime.tools.bench.case import Case, Request, request
from qwen_image_engine.runtime.tools.bench.result import ContenderInfo
from qwen_image_engine.runtime.tools.bench.stages import Sample, sample, stage_peaks


class Unavailable(QwenImageError):
    """The error of a contender that cannot run here. If it is a baseline, its row in the result gives the reason."""


@dataclass(frozen=True, eq=False)
class Runner:
    """A contender that is loaded in this process.

    Attributes:
        draw: function that draws one request, returns the first picture, and adds entries to `timings`.
        timings: timings of the contender's networks.
        version: version of the package that computes.
        precision: precision of the networks.
        disk_bytes: size of the files that the contender reads [bytes].
        prefix_in_first_step: whether the first step computes the prefix.
        close: function that frees the contender.
    """

    draw: Callable[[Request], Image.Image | NDArray[np.uint8]]
    timings: Timings
    version: str
    precision: str
    disk_bytes: int
    prefix_in_first_step: bool = False
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class RunSample:
    """The result of one draw.

    Attributes:
        sample: seconds by stage.
        peaks: peak memory by stage; empty if it was not requested.
        waiting: share of the total time in which a thread was ready and had no core; None if the system does not
            report it.
        picture: first picture of the batch as a PNG; None if it was not requested.
    """

    sample: Sample
    peaks: Mapping[str, MemoryUse]
    waiting: float | None = None
    picture: bytes | None = None


class Contender(Protocol):
    """A contender as the rounds use it: a drawer in this process or in another process."""

    @property
    def facts(self) -> ContenderInfo:
        """Facts of the contender that are known so far."""
        ...

    def draw(self, case: Case, number: int, *, watched: bool, picture: bool = False) -> RunSample:
        """Draw one picture or one batch.

        Args:
            case: the case to draw.
            number: number of the draw for `case.request`; this contender has not drawn it before.
            watched: whether to read memory use during the draw, which costs time.
            picture: whether the result contains the picture.

        Raises:
            QwenImageError: the draw failed.
        """
        ...

    def close(self) -> None:
        """Free the contender."""
        ...


def pipeline_runner(pipeline: QwenImage, version: str, precision: str, disk_bytes: int) -> Runner:
    """Return a drawer for a pipeline on any backend."""

    def draw(request: Request) -> NDArray[np.uint8]:
        case = request.case
        drawn = pipeline.generate(
            request.prompt,
            references=request.references,
            reference_resolution=request.resolution,
            width=case.width,
            height=case.height,
            steps=case.steps,
            solver=case.solver,
            sigmas=case.sigmas,
            seed=request.seed,
            num_images=case.batch,
        )
        return drawn[0].rgba

    return Runner(draw, pipeline.timings, version, precision, disk_bytes, close=pipeline.close)


def run_once(
    drawer: Runner,
    case: Case,
    number: int,
    resolution: int,
    watch: MemoryWatch | None = None,
    *,
    picture: bool = False,
) -> RunSample:
    """Time one request of a case.

    The reference images are made before the clock starts. The PNG is encoded after the clock has stopped.

    Raises:
        QwenImageError: the draw failed.
    """
    wanted = request(case, number, resolution)
    drawer.timings.clear()
    drawer.timings.watch = watch
    waited = run_queue_wait_s()
    began = perf_counter()
    drawn = drawer.draw(wanted)
    total_s = perf_counter() - began
    longest_s = longest_run_queue_wait(waited, run_queue_wait_s())
    entries = list(drawer.timings.entries)
    found = sample(entries, total_s, prefix_in_first_step=drawer.prefix_in_first_step)
    waiting = None if longest_s is None else min(1.0, longest_s / total_s)
    return RunSample(found, stage_peaks(entries), waiting, png_bytes(drawn) if picture else None)
