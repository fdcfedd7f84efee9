"""A way of drawing: something that loads once and draws requests, timing its own stages."""

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
from qwen_image_engine.runtime.system.run_queue import longest_wait, waited_s
from qwen_image_engine.runtime.timing import Timings
from qwen_image_engine.runtime.tools.bench.case import Case, Request, request
from qwen_image_engine.runtime.tools.bench.result import WayFacts
from qwen_image_engine.runtime.tools.bench.stages import Sample, sample, stage_peaks


class Unavailable(QwenImageError):
    """A peer that cannot run here: a baseline becomes a row that says why."""


@dataclass(frozen=True, eq=False)
class Drawer:
    """Something loaded, in this process.

    Attributes:
        draw: one request, and its first picture; grows `timings`.
        timings: of its networks.
        version: of the package that computes.
        precision: of its networks.
        disk_bytes: of the files that it reads.
        prefix_in_first_step: whether its first step computes the prefix.
        close: frees it.
    """

    draw: Callable[[Request], Image.Image | NDArray[np.uint8]]
    timings: Timings
    version: str
    precision: str
    disk_bytes: int
    prefix_in_first_step: bool = False
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Drawn:
    """One picture.

    Attributes:
        sample: seconds by stage.
        peaks: by stage, where they were asked for.
        waiting: the share of the total in which a thread was ready and had no core, None where the system is silent.
        picture: the first of the batch as a PNG, where it was asked for.
    """

    sample: Sample
    peaks: Mapping[str, MemoryUse]
    waiting: float | None = None
    picture: bytes | None = None


class Way(Protocol):
    """What the rounds run: a drawer in this process or in one of its own."""

    @property
    def facts(self) -> WayFacts:
        """What is known of it by now."""
        ...

    def draw(self, case: Case, number: int, *, watched: bool, picture: bool = False) -> Drawn:
        """Draw one picture, or one batch; `watched` reads memory meanwhile, which costs time; `picture` keeps it.

        `number` is that of `bench_case.request`: no way has drawn it before.

        Raises:
            QwenImageError: it failed.
        """
        ...

    def close(self) -> None:
        """Free it."""
        ...


def pipeline_drawer(pipeline: QwenImage, version: str, precision: str, disk_bytes: int) -> Drawer:
    """Any pipeline on any engines."""

    def draw(request: Request) -> NDArray[np.uint8]:
        case = request.case
        drawn = pipeline.generate(
            request.prompt,
            references=request.references,
            reference_resolution=request.resolution,
            width=case.width,
            height=case.height,
            steps=case.steps,
            seed=request.seed,
            num_images=case.batch,
        )
        return drawn[0].rgba

    return Drawer(draw, pipeline.timings, version, precision, disk_bytes, close=pipeline.close)


def draw_once(
    drawer: Drawer,
    case: Case,
    number: int,
    resolution: int,
    watch: MemoryWatch | None = None,
    *,
    picture: bool = False,
) -> Drawn:
    """One request of a case; what it is made of (noise patterns, pictures) is made before the clock starts.

    The picture is made a PNG after the clock has stopped.

    Raises:
        QwenImageError: it failed.
    """
    wanted = request(case, number, resolution)
    drawer.timings.clear()
    drawer.timings.watch = watch
    waited = waited_s()
    began = perf_counter()
    drawn = drawer.draw(wanted)
    total_s = perf_counter() - began
    longest_s = longest_wait(waited, waited_s())
    entries = list(drawer.timings.entries)
    found = sample(entries, total_s, prefix_in_first_step=drawer.prefix_in_first_step)
    waiting = None if longest_s is None else min(1.0, longest_s / total_s)
    return Drawn(found, stage_peaks(entries), waiting, png_bytes(drawn) if picture else None)
