"""The sizes of a graph's inputs and outputs in one profile, by which the open axes of an account are closed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qwen_image_engine.engines.core.contract import Contract, TensorSpec, split_axis
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.plans.entry import Profile
from qwen_image_engine.engines.tensorrt.kernels.amount import Amount

_BATCH = "batch"


@dataclass(frozen=True)
class Ports:
    """Inputs and outputs of a graph.

    Attributes:
        inputs: elements of each input by name.
        outputs: elements of each output by name.
        moving: names of the inputs whose size depends on the picture, the prompt or the references: all but features of
            the time.
        values: values of the symbols.
    """

    inputs: Mapping[str, Amount]
    outputs: Mapping[str, Amount]
    moving: frozenset[str]
    values: Mapping[str, int]

    @classmethod
    def of(cls, contract: Contract, profile: Profile) -> Ports:
        """Return the ports of a component at the optimum of a profile, for which the compiler tunes it.

        Raises:
            QwenImageError: the profile has other inputs than the contract, or other axes.
        """
        least, best, most = (_values(contract, profile, which) for which in range(3))
        fixed = {symbol: value for symbol, value in best.items() if least[symbol] == most[symbol]}
        return cls.at(contract, best, fixed)

    @classmethod
    def at(cls, contract: Contract, values: Mapping[str, int], fixed: Mapping[str, int]) -> Ports:
        """Return the ports at these values of the symbols; `fixed` has the symbols that have one value alone."""

        def elements(specs: tuple[TensorSpec, ...]) -> dict[str, Amount]:
            return {spec.name: Amount.of_shape(spec.shape, fixed) for spec in specs}

        moving = frozenset(spec.name for spec in contract.inputs if {*spec.symbols()} - {_BATCH})
        return cls(elements(contract.inputs), elements(contract.outputs), moving, values)


def _values(contract: Contract, profile: Profile, which: int) -> dict[str, int]:
    """Return the value of each symbol; `which` is 0 for the least, 1 for the optimum, 2 for the largest."""
    values: dict[str, int] = {}
    for spec in contract.inputs:
        shapes = profile.shapes.get(spec.name)
        if shapes is None or len(shapes[which]) != len(spec.shape):
            raise QwenImageError(
                f"{contract.component}: the profile {profile.name} has no shape {spec.describe()} of {spec.name}; "
                "build the plan again"
            )
        for axis, extent in zip(spec.shape, shapes[which], strict=True):
            if isinstance(axis, str) and "+" not in axis:
                factor, symbol = split_axis(axis)
                values.setdefault(symbol, extent // factor)
    missing = {*contract.symbols()} - values.keys()
    if missing:
        raise QwenImageError(
            f"{contract.component}: the profile {profile.name} does not say {', '.join(sorted(missing))}; "
            "build the plan again"
        )
    return values
