"""The choice of the optimization profile that serves a call, by the shapes of the inputs alone."""

from collections.abc import Mapping, Sequence
from math import prod

from qwen_image_engine.engines.core.contract import Contract, TensorSpec, describe_shape
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.plans.entry import Profile, Shape

_FLAGS = {
    "batch": "--batch",
    "text": "--prompt-tokens",
    "prefix": "--prompt-tokens and --references",
    "image": "--reference-resolution",
    "slots": "--reference-resolution",
    "tokens": "--profile",
    "height": "--profile",
    "width": "--profile",
}
"""Options of `qwen-image build` that make room for a symbolic axis."""


def choose_profile(contract: Contract, profiles: Sequence[Profile], shapes: Mapping[str, Shape], rebuild: str) -> int:
    """Return the index of the tightest profile that holds every shape. Of equally tight profiles, return the first.

    Args:
        contract: contract of the component.
        profiles: optimization profiles in the plan's order.
        shapes: shape of each input of the call, by name.
        rebuild: the command that builds the plan.

    Raises:
        QwenImageError: no profile holds every shape. The text names the nearest profile, the inputs that exceed it, and
            the build options to change.
    """
    fitting = [index for index, profile in enumerate(profiles) if not _beyond(contract, profile, shapes)]
    if fitting:
        return min(fitting, key=lambda index: (_volume(profiles[index]), index))
    nearest = min(
        profiles,
        key=lambda profile: (
            len(_beyond(contract, profile, shapes)),
            _distance(profile, shapes),
            _volume(profile),
        ),
    )
    beyond = _beyond(contract, nearest, shapes)
    flags = dict.fromkeys(flag for spec in beyond for flag in _flags(spec, nearest, shapes))
    spec = beyond[0]
    least, _, largest = nearest.shapes[spec.name]
    more = f" (and {len(beyond) - 1} more inputs)" if len(beyond) > 1 else ""
    raise QwenImageError(
        f"{contract.component}: {spec.name} {describe_shape(shapes[spec.name])}{more} fits no profile of this engine; "
        f"the nearest, {nearest.name}, takes {describe_shape(least)} to {describe_shape(largest)}; build one that has "
        f"room with: {rebuild} and another {', '.join(flags)}"
    )


def _beyond(contract: Contract, profile: Profile, shapes: Mapping[str, Shape]) -> list[TensorSpec]:
    """Return the inputs that a profile has no room for."""
    return [spec for spec in contract.inputs if not _holds(profile, spec.name, shapes[spec.name])]


def _holds(profile: Profile, name: str, shape: Shape) -> bool:
    least, _, largest = profile.shapes[name]
    return all(low <= size <= high for low, size, high in zip(least, shape, largest, strict=True))


def _flags(spec: TensorSpec, profile: Profile, shapes: Mapping[str, Shape]) -> list[str]:
    """Return the build options of the axes along which an input exceeds a profile."""
    least, _, largest = profile.shapes[spec.name]
    sizes = zip(spec.shape, least, shapes[spec.name], largest, strict=True)
    wrong = [axis for axis, low, size, high in sizes if not low <= size <= high]
    found = [symbol for axis in wrong for symbol in TensorSpec(spec.name, (axis,), spec.dtype, "").symbols()]
    return [_FLAGS[symbol] for symbol in found]


def _volume(profile: Profile) -> int:
    return sum(prod(largest) for _, _, largest in profile.shapes.values())


def _distance(profile: Profile, shapes: Mapping[str, Shape]) -> int:
    """Return the number of elements by which the inputs are outside the shapes of a profile."""
    return sum(
        max(prod(shapes[name]) - prod(largest), prod(least) - prod(shapes[name]), 0)
        for name, (least, _, largest) in profile.shapes.items()
    )
