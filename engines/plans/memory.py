"""The GPU memory of a plan: its weights and, by profile, its scratch memory, inputs and outputs."""

from collections.abc import Mapping, Sequence

from qwen_image_engine.engines.core.contract import Contract, split_axis
from qwen_image_engine.engines.core.device_array import size_bytes
from qwen_image_engine.engines.plans.entry import Profile

SPARE = 20
"""Divisor of a device's memory: where weights are streamed, one twentieth is left for inputs, outputs, keys, values."""


def port_bytes(contract: Contract, profile: Profile) -> int:
    """Return the bytes of all inputs and outputs at a profile's largest sizes, keys and values among them."""
    sizes: dict[str, int] = {}
    total = 0
    for spec in contract.inputs:
        largest = profile.shapes[spec.name][2]
        total += size_bytes(largest, spec.dtype)
        for axis, size in zip(spec.shape, largest, strict=True):
            if isinstance(axis, str) and "+" not in axis:
                factor, name = split_axis(axis)
                sizes[name] = size // factor
    return total + sum(
        size_bytes(tuple(_size(axis, sizes) for axis in spec.shape), spec.dtype) for spec in contract.outputs
    )


def missing_bytes(
    contract: Contract, profiles: Sequence[Profile], scratch: Sequence[int], weights: int, there: int
) -> dict[str, int]:
    """Return the bytes by profile that a profile's largest sizes need beyond `there` bytes, without profiles that fit.

    `scratch` has the scratch bytes of each profile, or is empty if they are not known yet.
    """
    known = scratch or [0] * len(profiles)
    needs = {
        profile.name: weights + port_bytes(contract, profile) + most
        for profile, most in zip(profiles, known, strict=True)
    }
    return {name: needed - there for name, needed in needs.items() if needed > there}


def _size(axis: str | int, sizes: Mapping[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    return sum(factor * sizes[name] for factor, name in map(split_axis, axis.split("+")))
