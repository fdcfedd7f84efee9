"""Steps of the sampler taken by an engine itself, where the network runs: inputs, results, interface."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.device_array import Values
from qwen_image_engine.engines.core.engine import Engine


@dataclass(frozen=True, eq=False)
class LoopInputs:
    """What the steps begin with.

    Attributes:
        latents: (batch, tokens, channels) float32 at sigmas[0]; not modified.
        sigmas: (N + 1,) float32, falling.
        time_features: (N, features) float32, of the first N of them.
        branches: all other inputs of a step by name, of the prompt and with guidance of the negative prompt too.
        guidance: of the first branch over the second; without a second one it is not used.
    """

    latents: NDArray[np.float32]
    sigmas: NDArray[np.float32]
    time_features: NDArray[np.float32]
    branches: tuple[Mapping[str, Values], ...]
    guidance: float

    @property
    def steps(self) -> int:
        """N."""
        return len(self.sigmas) - 1


@dataclass(frozen=True, eq=False)
class LoopResult:
    """What the steps came to.

    Attributes:
        latents: (batch, tokens, channels), after the last step.
        seconds: of each run of the network on the device, in order.
        not_finite: index of the first step whose velocity was not finite, None where all were.
    """

    latents: NDArray[np.float32]
    seconds: tuple[float, ...]
    not_finite: int | None


class Loop(Protocol):
    """Steps that the device takes while the host goes on. Not to be used after `finish` or an error."""

    def step(self) -> None:
        """Put the next one behind those before; nothing is waited for.

        Raises:
            OutOfDeviceMemory: there is no room; the latents are as before, and it may be tried again.
            QwenImageError: the engine refuses.
        """
        ...

    def wait(self) -> None:
        """Wait until the last step that was put is done."""
        ...

    def read(self) -> tuple[NDArray[np.float32], ...]:
        """Copy what the last step left: latents (batch, tokens, channels), and the velocity of each branch.

        Raises:
            QwenImageError: some of it failed.
        """
        ...

    def finish(self) -> LoopResult:
        """Wait for all of them.

        Raises:
            QwenImageError: some of it failed.
        """
        ...

    def abandon(self) -> None:
        """Wait for what is on its way, whatever became of it, so that its memory may go."""
        ...


@runtime_checkable
class LoopingEngine(Engine, Protocol):
    """An engine that takes the sampler's steps itself."""

    def loop(self, inputs: LoopInputs) -> Loop:
        """Copy to the device what the steps need; takes none yet.

        Raises:
            OutOfDeviceMemory: there is no room.
            QwenImageError: inputs that do not match the contract, or shapes that no profile holds; an engine that is
                closed.
        """
        ...
