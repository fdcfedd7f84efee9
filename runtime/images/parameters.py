"""The parameters that determine a picture, and their JSON, which its PNG file holds."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from PIL import Image, UnidentifiedImageError

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.engines.core.files import open_regular
from qwen_image_engine.runtime.images.read import DAMAGE
from qwen_image_engine.runtime.sampling.spacing import ChosenLevels
from qwen_image_engine.runtime.system.json_schema import (
    COUNT,
    SIGMAS,
    SchemaError,
    fields_of,
    is_integer,
    leaf,
    many,
    optional,
    parse,
)

CHUNK = "qwen-image-engine"
"""Keyword of the text chunk of a PNG that holds the parameters as JSON."""

_MAX_CHARACTERS = 2**20


@dataclass(frozen=True)
class PictureOrigin:
    """The origin of a pipeline's networks.

    Attributes:
        engine: name of the backend.
        precision: precision of the networks.
        checkpoint: name of the checkpoint.
        bundle: fingerprint of the bundle (`Manifest.fingerprint`); None if there is none.
    """

    engine: str
    precision: str
    checkpoint: str
    bundle: str | None = None


@dataclass(frozen=True)
class ReferenceOrigin:
    """The origin of a reference image or of a mask.

    Attributes:
        name: name of the file, without its folder; None for an image from memory.
        sha256: SHA-256 of the size and pixels of the fitted image, or of the size and alpha of the mask in its file.
    """

    name: str | None
    sha256: str


@dataclass(frozen=True)
class PictureParameters:
    """The parameters that determine a picture. The PNG file holds them as JSON in a text chunk.

    Attributes:
        prompt: the prompt, as given.
        negative_prompt: the negative prompt; None without guidance.
        references: the reference images, in order.
        mask: the mask of the first reference image; None without a mask.
        reference_resolution: side of a square of the area that each was fitted to [pixels]; None without reference
            images.
        guidance: guidance weight; 1 without guidance.
        seed: seed of the initial noise; None if the caller gave the noise itself.
        num_images: size of the batch, whose noise is drawn at once.
        image: index of this picture in the batch, from 0.
        steps: number of steps of the solver.
        solver: name of the solver.
        evaluations: number of evaluations of the network, each of which guidance doubles.
        sigmas: noise levels or the name of a spacing that the caller chose; None for the checkpoint's own.
        width: width of the picture [pixels].
        height: height of the picture [pixels].
        engine: name of the backend that generated the picture.
        precision: precision of the networks.
        checkpoint: name of the checkpoint.
        bundle: fingerprint of the bundle (`Manifest.fingerprint`); None if there was none.
        version: version of this package.
    """

    prompt: str
    negative_prompt: str | None
    references: tuple[ReferenceOrigin, ...]
    mask: ReferenceOrigin | None
    reference_resolution: int | None
    guidance: float
    seed: int | None
    num_images: int
    image: int
    steps: int
    solver: str
    evaluations: int
    sigmas: ChosenLevels
    width: int
    height: int
    engine: str
    precision: str
    checkpoint: str
    bundle: str | None
    version: str

    def to_json(self) -> str:
        """Return the parameters as JSON in ASCII. Python reads the numbers back exactly."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read the parameters from the PNG file of a picture.

        Raises:
            UsageError: the file cannot be read, is not a PNG, or holds no parameters in this format.
        """
        text = _text(Path(path))
        try:
            if len(text) > _MAX_CHARACTERS:
                raise SchemaError(f"{len(text)} characters, expected at most {_MAX_CHARACTERS}")
            values = parse(text)
            if isinstance(values, dict) and "solver" not in values:  # drawn before there was a choice
                values |= {"solver": "euler", "evaluations": values.get("steps"), "sigmas": None}
            if isinstance(values, dict):
                values.setdefault("mask", None)  # drawn before there were masks
            _CHECK(values, "")
            if not values["image"] < values["num_images"]:
                raise SchemaError(f"image {values['image']} of a batch of {values['num_images']}")
        except SchemaError as error:
            raise UsageError(f"{path}: its parameters are damaged or of another version ({error})") from error
        values["references"] = tuple(ReferenceOrigin(**reference) for reference in values["references"])
        values["mask"] = ReferenceOrigin(**values["mask"]) if values["mask"] is not None else None
        values["sigmas"] = tuple(values["sigmas"]) if isinstance(values["sigmas"], list) else values["sigmas"]
        return cls(**values)


_CHECK = fields_of(
    PictureParameters,
    references=many(fields_of(ReferenceOrigin), least=0),
    mask=optional(fields_of(ReferenceOrigin)),
    reference_resolution=optional(COUNT),
    seed=optional(leaf("a whole number", is_integer)),
    sigmas=SIGMAS,
)


def _text(path: Path) -> str:
    """Return the text of the chunk. Pixels are decoded only if it is not before them.

    Raises:
        UsageError: the file cannot be read, is not a PNG, or has no such chunk.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            open_regular(path) as file,
            Image.open(file, formats=["PNG"]) as image,
        ):
            if CHUNK not in image.info:
                image.load()
            text: Any = image.info.get(CHUNK)
    except UnidentifiedImageError as error:
        raise UsageError(f"{path} is not a PNG") from error
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(text, str):
        raise UsageError(f"{path} holds no parameters under the key {CHUNK}; only pictures saved by this tool do")
    return text
