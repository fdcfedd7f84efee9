"""The preparation of a job: the checked fields of a request become requests of a pipeline."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from qwen_image_engine.runtime.images.reference_image import ReferenceImages
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.serve.api.errors import ApiError, blamed
from qwen_image_engine.runtime.serve.api.limits import Limits
from qwen_image_engine.runtime.serve.api.replies import Tokens
from qwen_image_engine.runtime.serve.encoding import Output
from qwen_image_engine.runtime.serve.job import Event, Job
from qwen_image_engine.runtime.serve.links import Links
from qwen_image_engine.runtime.serve.models import Model
from qwen_image_engine.runtime.serve.uploads import open_picture, read_images

_RANDOM_SEEDS = 2**31
"""Seeds that are drawn where a request names none: a browser holds them exactly, and the noise has 32 bits of them."""


def output_of(values: Mapping[str, Any]) -> Output:
    """Return the form of the files that a request asks for.

    Raises:
        ApiError: the fields contradict one another.
    """
    file_format, background, quality = (values[key] for key in ("output_format", "background", "output_compression"))
    if file_format == "jpeg" and background == "transparent":
        text = "'background' is 'transparent', which no JPEG can be; ask for 'png' or 'webp'"
        raise ApiError(400, text, "background", "invalid_value")
    if file_format == "png" and quality < 100:
        text = f"'output_compression' is {quality}, and a PNG takes 100 alone; ask for 'webp' or 'jpeg'"
        raise ApiError(400, text, "output_compression", "invalid_value")
    opaque = background == "opaque" or file_format == "jpeg"
    return Output(file_format, quality, "opaque" if opaque else "transparent")


def check_together(values: Mapping[str, Any]) -> None:
    """Raise if fields that are valid alone contradict one another.

    Raises:
        ApiError: two fields contradict one another. `param` names the field to change.
    """
    output_of(values)
    guidance, negative = values["guidance_scale"], values["negative_prompt"]
    if guidance > 1 and negative is None:
        text = f"'guidance_scale' is {guidance:g}, and needs a 'negative_prompt' to steer away from; it may be empty"
        raise ApiError(400, text, "negative_prompt", "missing_required_parameter")
    if guidance == 1 and negative is not None:
        text = "'negative_prompt' needs a 'guidance_scale' above 1; set it, for example to 3"
        raise ApiError(400, text, "guidance_scale", "invalid_value")
    if values["partial_images"] and not values["stream"]:
        text = f"'partial_images' is {values['partial_images']}, and they are sent in a stream; set 'stream'"
        raise ApiError(400, text, "partial_images", "invalid_value")
    if values["stream"] and values["response_format"] == "url":
        text = "'response_format' is 'url', and a stream holds pictures alone; ask for 'b64_json'"
        raise ApiError(400, text, "response_format", "invalid_value")
    seed, count = values["seed"], values["n"]
    if seed is not None and seed + count > 2**64:
        raise ApiError(400, f"'seed' is {seed}, and {count} pictures take the seeds after it; lower it", "seed")


def prepare_job(
    values: Mapping[str, Any],
    model: Model,
    limits: Limits,
    deliver: Callable[[Event], None],
    request_id: str,
    links: Links,
) -> tuple[Job, Tokens]:
    """Prepare the pictures of a request. Images are decoded, and no network runs.

    Args:
        values: checked fields of the request; the values of files are lists of `UploadFile`.
        model: model that draws.
        limits: bounds of the server.
        deliver: function that takes the job's events.
        request_id: id of the HTTP request.
        links: place of files for `response_format: url`.

    Raises:
        ApiError: the request cannot be drawn; `param` names the field at fault.
        QwenImageError: there is no memory for the request.
    """
    pipeline = model.pipeline
    files = values.get("image") or []
    resolution = values.get("reference_resolution", DEFAULT_RESOLUTION)
    mask = None
    if values.get("mask"):
        mask = open_picture(values["mask"][0], "mask", None, limits.upload_pixels, formats=("PNG", "WEBP"))
    references = read_images(pipeline, files, resolution, limits.upload_pixels, for_mask=mask is not None)
    text = _text_tokens(pipeline, values, references)
    width, height = values["size"] or (None, None)
    seed = secrets.randbelow(_RANDOM_SEEDS) if values["seed"] is None else values["seed"]
    prepare = partial(
        pipeline.prepare,
        values["prompt"],
        negative_prompt=values["negative_prompt"],
        references=references,
        guidance=values["guidance_scale"],
        width=width,
        height=height,
        steps=values["num_inference_steps"],
        seed=seed,
        solver=values["solver"],
        sigmas=values["sigmas"],
    )
    with blamed("sigmas" if values["sigmas"] is not None else "num_inference_steps"):
        request = prepare()
    if mask is not None:
        with blamed("mask"):  # everything else was found to be right
            request = prepare(mask=mask)
    _check_fitted(request.width, request.height, limits)
    job = Job(
        request_id,
        model,
        request,
        tuple(range(seed, seed + values["n"])),
        output_of(values),
        deliver,
        values["partial_images"],
        values["stream"],
        links if values["response_format"] == "url" else None,
    )
    return job, Tokens(text, _image_tokens(references), request.inputs.rows * request.inputs.columns)


def _text_tokens(pipeline: QwenImage, values: Mapping[str, Any], references: ReferenceImages) -> int:
    """Check the prompts, and return the number of their tokens together.

    Raises:
        ApiError: a prompt is too long, is not valid Unicode, or contains an image slot.
    """
    total = 0
    for name in ("prompt", "negative_prompt"):
        if values[name] is not None:
            with blamed(name):
                total += pipeline.prefix_tokens(values[name], references) - _image_tokens(references)
    return total


def _image_tokens(references: ReferenceImages) -> int:
    return sum(image.block.height * image.block.width for image in references.images)


def _check_fitted(width: int, height: int, limits: Limits) -> None:
    """Raise if the size that "auto" took from an image is beyond the server's bounds.

    Raises:
        ApiError: the size is beyond the bounds.
    """
    if width * height > limits.picture_pixels or max(width, height) > limits.picture_side:
        text = f"the image's shape makes a picture of {width}x{height}, which is too large; name a 'size'"
        raise ApiError(400, text, "size", "invalid_value")
