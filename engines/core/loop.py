"""The interface of a sampling loop that an engine runs on its device, with the inputs and the result of the loop."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.device_array import Values
from qwen_image_engine.engines.core.engine import Engine


@dataclass(frozen=True, eq=False)
class LoopInputs:
    """The inputs of a sampling loop.

    Attributes:
        latents: (batch, tokens, channels) float32 at sigmas[0]; not modified.
        sigmas: (N + 1,) float32, falling.
        time_features: (N, features) float32, time features of the first N sigmas.
        branches: all other inputs of a step by name: one mapping for the prompt and, with guidance, one for the
            negative prompt.
        guidance: guidance scale of the first branch over the second; not used if there is one branch.
    """

    latents: NDArray[np.float32]
    sigmas: NDArray[np.float32]
    time_features: NDArray[np.float32]
    branches: tuple[Mapping[str, Values], ...]
    guidance: float

    @property
    def steps(self) -> int:
        """Number of steps, N."""
        return len(self.sigmas) - 1


@dataclass(frozen=True, eq=False)
class LoopResult:
    """The result of a sampling loop on the device.

    Attributes:
        latents: (batch, tokens, channels) latents after the last step.
        seconds: time of each run of the network on the device, in order.
        not_finite: index of the first step whose velocity was not finite; None if all velocities were finite.
    """

    latents: NDArray[np.float32]
    seconds: tuple[float, ...]
    not_finite: int | None


class Loop(Protocol):
    """A sampling loop whose steps run on the device while the host goes on.

    It must not be used after `finish` or an error.
    """

    def step(self) -> None:
        """Enqueue the next step after all earlier steps, without waiting.

        Raises:
            OutOfDeviceMemory: the device has no room. The latents are unchanged, and the step may be tried again.
            QwenImageError: the engine cannot run the step.
        """
        ...

    def wait(self) -> None:
        """Wait until the last enqueued step is done."""
        ...

    def read(self) -> tuple[NDArray[np.float32], ...]:
        """Return copies of the latents (batch, tokens, channels) after the last step and of each branch's velocity.

        Raises:
            QwenImageError: an enqueued step failed.
        """
        ...

    def finish(self) -> LoopResult:
        """Wait for all steps and return the result.

        Raises:
            QwenImageError: an enqueued step failed.
        """
        ...

    def abandon(self) -> None:
        """Wait until the device has ended all enqueued work, failed or not, so that the memory may be freed."""
        ...


@runtime_checkable
class LoopingEngine(Engine, Protocol):
    """An engine that runs the sampling loop on its device."""

    def loop(self, inputs: LoopInputs) -> Loop:
        """Copy the inputs of the loop to the device, and take no step yet.

        Raises:
            OutOfDeviceMemory: the device has no room.
            QwenImageError: the inputs do not match the contract, no profile holds their shapes, or the engine is
                closed.
        """
        ...
