"""The table of request fields, which checks requests and makes `/openapi.json`.

The names are those of OpenAI's image endpoints (`openai` 3.57, `types/image_generate_params.py` and
`image_edit_params.py`), and after them this server's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen_image_engine.runtime.images.fit import MAX_RESOLUTION
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION, MAX_REFERENCES, SIDE_MULTIPLE
from qwen_image_engine.runtime.sampling.schedule import MAX_STEPS
from qwen_image_engine.runtime.sampling.solver import SOLVERS
from qwen_image_engine.runtime.sampling.spacing import SPACINGS
from qwen_image_engine.runtime.serve.api.errors import ApiError
from qwen_image_engine.runtime.serve.api.kinds import Choice, Kind, Number, Picture, Sigmas, Size, Text, Truth, Whole
from qwen_image_engine.runtime.serve.api.limits import (
    MAX_PARTIAL_IMAGES,
    MAX_PICTURES,
    MAX_PROMPT_CHARACTERS,
    Limits,
)

Endpoint = Literal["generations", "edits"]
ENDPOINTS: tuple[Endpoint, ...] = ("generations", "edits")

GREATEST_GUIDANCE = 100.0
_IGNORED_CHARACTERS = 256


@dataclass(frozen=True)
class Field:
    """A field of a request.

    Attributes:
        name: name of the field.
        kind: kind of its value.
        meaning: description for the document.
        default: value if the field is absent or null, as in the document.
        where: endpoints that take the field.
        required: whether a request must have the field.
        ignored: whether the field is accepted and changes nothing.
        many: whether a form may have the field several times, also as `name[]`; the most of them.
    """

    name: str
    kind: Kind
    meaning: str
    default: Any = None
    where: tuple[Endpoint, ...] = ENDPOINTS
    required: bool = False
    ignored: bool = False
    many: int = 1


def request_fields(limits: Limits) -> tuple[Field, ...]:
    """Return the fields of both endpoints, within the bounds of the server."""
    prompt = Text(MAX_PROMPT_CHARACTERS)
    ignored = Text(_IGNORED_CHARACTERS)
    return (
        Field("prompt", prompt, "what to draw or to change; at most 1,100 tokens", required=True),
        Field(
            "image",
            Picture(),
            f"images to edit or to take from, 1 to {MAX_REFERENCES}, as parts 'image' or 'image[]'",
            where=("edits",),
            required=True,
            many=MAX_REFERENCES,
        ),
        Field(
            "mask",
            Picture(),
            "a PNG of the first image's size: its transparent pixels are edited, the others stay",
            where=("edits",),
        ),
        Field("model", Text(1000), "name of a model of /v1/models; the first one if absent"),
        Field("n", Whole(1, MAX_PICTURES), "number of pictures, of the seeds seed, seed + 1, …", 1),
        Field(
            "size",
            Size(limits.picture_pixels, limits.picture_side),
            "size of the pictures; 'auto' is 1024x1024, or the last image's shape",
            "auto",
        ),
        Field(
            "background",
            Choice(("auto", "transparent", "opaque")),
            "'auto' keeps transparency in PNG and WebP; 'opaque' draws over white",
            "auto",
        ),
        Field("output_format", Choice(("png", "webp", "jpeg")), "file format of the pictures", "png"),
        Field("output_compression", Whole(0, 100), "quality of WebP and JPEG in percent", 100),
        Field(
            "response_format",
            Choice(("b64_json", "url")),
            "pictures in the reply, or as temporary addresses of this server",
            "b64_json",
        ),
        Field("stream", Truth(), "send server-sent events", False),
        Field(
            "partial_images",
            Whole(0, MAX_PARTIAL_IMAGES),
            "partial pictures of each picture of a stream",
            0,
        ),
        Field("quality", ignored, "accepted and ignored", ignored=True),
        Field("style", ignored, "accepted and ignored", ignored=True),
        Field("moderation", ignored, "accepted and ignored", ignored=True),
        Field("input_fidelity", ignored, "accepted and ignored", where=("edits",), ignored=True),
        Field("user", ignored, "accepted and ignored", ignored=True),
        Field("safety_identifier", ignored, "accepted and ignored", ignored=True),
        Field("seed", Whole(-(2**63), 2**64 - 1), "seed of the noise; a random one if absent"),
        Field("num_inference_steps", Whole(1, MAX_STEPS), "steps of the sampler; the model's own number if absent"),
        Field(
            "reference_resolution",
            Whole(SIDE_MULTIPLE, MAX_RESOLUTION),
            "side of a square of the area that each image is fitted to",
            DEFAULT_RESOLUTION,
            where=("edits",),
        ),
        Field("negative_prompt", prompt, "what to steer away from; needs guidance_scale above 1"),
        Field("guidance_scale", Number(1.0, GREATEST_GUIDANCE), "1 for none; above 1 each step runs twice", 1.0),
        Field("sigmas", Sigmas(tuple(SPACINGS), MAX_STEPS), "spacing of the noise levels, or the levels themselves"),
        Field("solver", Choice(tuple(SOLVERS)), "solver of the sampler", "euler"),
    )


class RequestForm:
    """The fields of one endpoint."""

    def __init__(self, fields: tuple[Field, ...], endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.fields = {field.name: field for field in fields if endpoint in field.where}

    def field(self, name: str) -> Field:
        """Return the field of a name.

        Raises:
            ApiError: the endpoint has no such field.
        """
        if name not in self.fields:
            shown = name if len(name) <= 64 else f"{name[:64]}…"
            raise ApiError(400, f"Unknown parameter: '{shown}'.", shown, "unknown_parameter")
        return self.fields[name]

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check the values of a request, and fill in the defaults. Files are not looked at.

        Raises:
            ApiError: a field is unknown or missing, or a value is of another type or out of range.
        """
        for name in given:
            self.field(name)
        found = {}
        for field in self.fields.values():
            value = given.get(field.name)
            if value is None and field.required:
                raise ApiError(
                    400, f"Missing required parameter: '{field.name}'.", field.name, "missing_required_parameter"
                )
            if value is None:
                default = field.default
                found[field.name] = default if default is None else field.kind.check(field.name, default)
            elif isinstance(field.kind, Picture):
                found[field.name] = value
            else:
                found[field.name] = field.kind.check(field.name, value)
        return found


def markdown(limits: Limits) -> str:
    """Return the table of fields for docs/serve.md."""
    lines = ["| field | takes | default | meaning |", "|---|---|---|---|"]
    for field in request_fields(limits):
        default = "required" if field.required else "" if field.default is None else f"`{_json_text(field.default)}`"
        meaning = f"{field.meaning}; edits alone" if field.where == ("edits",) else field.meaning
        lines.append(f"| `{field.name}` | {field.kind.words()} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _json_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
