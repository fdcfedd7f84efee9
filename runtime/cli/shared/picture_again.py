"""The flag `--from` of `run`: a picture's own parameters take the place of flags that were not given."""

import argparse
from typing import TYPE_CHECKING, Any

from qwen_image_engine.engines.backends import ENGINES
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION, other_side
from qwen_image_engine.runtime.system.json_schema import described

if TYPE_CHECKING:
    from qwen_image_engine.runtime.images.parameters import PictureOrigin, PictureParameters
    from qwen_image_engine.runtime.request import Request

DEFAULTS: dict[str, Any] = {
    "engine": "onnxruntime",
    "guidance": 1.0,
    "num_images": 1,
    "reference_resolution": DEFAULT_RESOLUTION,
    "seed": (0,),
    "solver": "euler",
}
"""Values of flags that are None because neither the command line nor a picture names them."""


def take_parameters(options: argparse.Namespace) -> "PictureParameters | None":
    """Fill in flags that were not given, from the picture of `--from` or from `DEFAULTS`.

    `options.image` becomes the index of the picture in its batch; None where the whole batch is written.

    Returns:
        The parameters of the picture; None without `--from`.

    Raises:
        UsageError: there is neither a prompt nor a picture, the picture cannot be read or holds no parameters, or it
            needs files that were not given.
    """
    options.image = None
    if options.picture is None:
        if options.prompt is None:
            raise UsageError("the flag -p/--prompt is required; see qwen-image run --help")
        _fill(options, DEFAULTS)
        return None
    from qwen_image_engine.runtime.images.parameters import PictureParameters  # Pillow, which other verbs do not need

    parameters = PictureParameters.read(options.picture)
    _check_files(options, parameters)
    if options.num_images is None:
        options.image = parameters.image if parameters.num_images > 1 else None
    _fill(options, _values(options, parameters))
    _fill(options, DEFAULTS)
    return parameters


def differences(
    options: argparse.Namespace, parameters: "PictureParameters", origin: "PictureOrigin", request: "Request"
) -> list[str]:
    """Return the sources of the picture of `--from` that its new pictures do not share, as phrases."""
    found = []
    if parameters.bundle != origin.bundle:
        found.append(f"with another bundle ({described(parameters.checkpoint)}, {described(parameters.precision)})")
    if parameters.engine != options.engine:
        found.append(f"by the engine {described(parameters.engine)}")
    if parameters.references and [item.sha256 for item in parameters.references] != [
        image.sha256 for image in request.references.images
    ]:
        found.append("after reference images with other pixels")
    if parameters.mask and request.mask and parameters.mask.sha256 != request.mask.sha256:
        found.append("inside a mask with other pixels")
    return found


def _values(options: argparse.Namespace, parameters: "PictureParameters") -> dict[str, Any]:
    """Return the values of flags that draw the picture again, as far as other flags leave them."""
    width, height = parameters.width, parameters.height
    if options.width is not None:
        height = other_side(options.width, width, height) if width and height else height
    elif options.height is not None:
        width = other_side(options.height, height, width) if width and height else width
    return {
        "prompt": parameters.prompt,
        "negative_prompt": None if options.guidance == 1 else parameters.negative_prompt,
        "reference_resolution": parameters.reference_resolution,
        "guidance": parameters.guidance,
        "width": width,
        "height": height,
        **_sampling(options, parameters),
        "seed": None if parameters.seed is None else (parameters.seed,),
        "num_images": parameters.num_images,
        "engine": parameters.engine if parameters.engine in ENGINES else None,
    }


def _sampling(options: argparse.Namespace, parameters: "PictureParameters") -> dict[str, Any]:
    """Return steps, solver and sigmas of the picture, as far as other flags leave them.

    A list of sigmas is as long as the steps that it was given for, and goes when another number is asked for.
    """
    sigmas = parameters.sigmas
    listed = sigmas is not None and not isinstance(sigmas, str)
    return {
        "steps": None if isinstance(options.sigmas, tuple) or (listed and options.steps is None) else parameters.steps,
        "solver": parameters.solver,
        "sigmas": None if listed and options.steps is not None else sigmas,
    }


def _check_files(options: argparse.Namespace, parameters: "PictureParameters") -> None:
    """Raise if the picture was drawn from files that it does not hold and no flag names.

    Raises:
        UsageError: reference images, a mask or initial noise are missing.
    """
    if parameters.references and not options.reference:
        names = ", ".join(described(item.name) if item.name else "from memory" for item in parameters.references)
        raise UsageError(
            f"{options.picture} was drawn after reference images ({names}), which it does not hold; name them with -r, "
            "in this order"
        )
    if parameters.mask and not options.mask:
        name = described(parameters.mask.name) if parameters.mask.name else "from memory"
        raise UsageError(
            f"{options.picture} was drawn inside a mask ({name}), which it does not hold; name it with --mask"
        )
    if parameters.seed is None and options.latents is None and options.seed is None:
        raise UsageError(
            f"{options.picture} was drawn from given noise, which it does not hold; name it with --latents, or draw "
            "other noise with --seed"
        )


def _fill(options: argparse.Namespace, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
