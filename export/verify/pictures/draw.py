"""The drawing of every request with every setting, by the reference and by bundles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import Cancelled, QwenImageError
from qwen_image_engine.export.verify.pictures.distance import distance
from qwen_image_engine.export.verify.pictures.result import DrawnPicture
from qwen_image_engine.export.verify.pictures.settings import Setting
from qwen_image_engine.export.verify.recording import Case
from qwen_image_engine.runtime.images.png import png_bytes
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.request import Request, RequestOptions
from qwen_image_engine.runtime.system.progress import ProgressBar

Drawn = tuple[NDArray[np.uint8], NDArray[np.float32]]
"""A picture (height, width, 4) uint8 and its final latents (tokens, channels)."""


@dataclass(frozen=True)
class Guidance:
    """The guidance of every request: its weight, 1 for none, and the negative prompt, None for none."""

    weight: float = 1.0
    negative_prompt: str | None = None

    @property
    def options(self) -> RequestOptions:
        """Options of a request with this guidance."""
        return {"guidance": self.weight, "negative_prompt": self.negative_prompt}


def prepared(pipeline: QwenImage, case: Case, setting: Setting, guidance: Guidance) -> Request:
    """Check a request with a setting and return it. No network runs or is loaded.

    Raises:
        UsageError: the request is invalid.
        QwenImageError: there is no memory for the request's keys and values.
    """
    options: RequestOptions = {
        **setting.sampling,
        **guidance.options,
        "references": pipeline.read_references(case.references, case.reference_resolution),
        "width": case.width,
        "height": case.height,
        "seed": case.seed,
    }
    return pipeline.prepare(case.prompt, **options)


def solve(
    pipeline: QwenImage, cases: Sequence[Case], solution: Setting, guidance: Guidance, advance: ProgressBar
) -> dict[str, Drawn]:
    """Return the solution of each request, by the request's name.

    Raises:
        QwenImageError: the reference failed.
    """
    found = {}
    for case in cases:
        (picture,) = pipeline.generate(
            prepared(pipeline, case, solution, guidance), on_step=lambda _: advance.advance()
        )
        found[case.name] = (picture.rgba, picture.latents)
    return found


def pictures(
    pipeline: QwenImage,
    cases: Sequence[Case],
    setting: Setting,
    guidance: Guidance,
    solutions: Mapping[str, Drawn],
    *,
    keep: bool,
) -> Iterator[DrawnPicture]:
    """Yield the picture of each request with one setting, compared with the solution.

    With `keep` the picture is part of the result. If a picture cannot be drawn, that is a finding, not an error.
    """
    for case in cases:
        request = prepared(pipeline, case, setting, guidance)
        try:
            (picture,) = pipeline.generate(request)
        except Cancelled:
            raise
        except QwenImageError as error:
            yield DrawnPicture(case.name, None, missing=str(error))
            continue
        found = distance((picture.rgba, picture.latents), solutions[case.name])
        yield DrawnPicture(case.name, found, png_bytes(picture.rgba) if keep else None)
