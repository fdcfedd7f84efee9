"""The interface of a sampling loop that an engine runs on its device, and the stages of which any solver is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.device_array import Values
from qwen_image_engine.engines.core.engine import Engine


@dataclass(frozen=True)
class Stage:
    """The constants of a stage. A solver is a list of stages, which host and device compute with the same bits.

    With the latents x, the velocity v of the network at (x, `sigma`), and the terms m1 and m2 of the stage before and
    of that before it (0 at first), a stage computes its own term m and the next x:

        m = p * x + q * v
        x = a * x + b * m + c * m1 + d * m2

    in float32, from left to right, each operation rounded on its own.

    Attributes:
        step: index of the step that the stage belongs to, 0 for the first.
        sigma: noise level at which the network is evaluated.
        p: weight of the latents in the term.
        q: weight of the velocity in the term.
        a: weight of the latents.
        b: weight of the stage's own term.
        c: weight of the term of the stage before.
        d: weight of the term before that.
        ends: whether the step ends with this stage.
    """

    step: int
    sigma: float
    p: float
    q: float
    a: float
    b: float
    c: float = 0.0
    d: float = 0.0
    ends: bool = True


@dataclass(frozen=True, eq=False)
class LoopInputs:
    """The inputs of a sampling loop.

    Attributes:
        latents: (batch, tokens, channels) float32 at the first stage's sigma; not modified.
        stages: stages of all steps of the solver.
        time_features: (stages, features) float32, time features of each stage's sigma.
        branches: all other inputs of a step by name: one mapping for the prompt and, with guidance, one for the
            negative prompt.
        guidance: guidance scale of the first branch over the second; not used if there is one branch.
    """

    latents: NDArray[np.float32]
    stages: tuple[Stage, ...]
    time_features: NDArray[np.float32]
    branches: tuple[Mapping[str, Values], ...]
    guidance: float


@dataclass(frozen=True, eq=False)
class LoopResult:
    """The result of a sampling loop on the device.

    Attributes:
        latents: (batch, tokens, channels) latents after the last step.
        seconds: time of each run of the network on the device, in order.
        not_finite: index of the first stage whose velocity was not finite; None if all velocities were finite.
    """

    latents: NDArray[np.float32]
    seconds: tuple[float, ...]
    not_finite: int | None


class Loop(Protocol):
    """A sampling loop whose stages run on the device while the host goes on.

    It must not be used after `finish` or an error.
    """

    def advance(self) -> None:
        """Enqueue the next stage after all earlier ones, without waiting.

        Raises:
            OutOfDeviceMemory: the device has no room. The latents are unchanged, and the stage may be tried again.
            QwenImageError: the engine cannot run the stage.
        """
        ...

    def wait(self) -> None:
        """Wait until the network of the last enqueued stage is done."""
        ...

    def read(self) -> tuple[NDArray[np.float32], ...]:
        """Return copies of the latents (batch, tokens, channels) after the last stage and of each branch's velocity.

        Raises:
            QwenImageError: an enqueued stage failed.
        """
        ...

    def finish(self) -> LoopResult:
        """Wait for all stages and return the result.

        Raises:
            QwenImageError: an enqueued stage failed.
        """
        ...

    def abandon(self) -> None:
        """Wait until the device has ended all enqueued work, failed or not, so that the memory may be freed."""
        ...


@runtime_checkable
class LoopingEngine(Engine, Protocol):
    """An engine that runs the sampling loop on its device."""

    def loop(self, inputs: LoopInputs) -> Loop:
        """Copy the inputs of the loop to the device, and take no stage yet.

        Raises:
            OutOfDeviceMemory: the device has no room.
            QwenImageError: the inputs do not match the contract, no profile holds their shapes, or the engine is
                closed.
        """
        ...
