"""An engine of the reference that collects statistics of its linears' activations while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qwen_image_engine.calibration.observe.activations import ObservedTensor
from qwen_image_engine.calibration.observe.statistics import InputSums
from qwen_image_engine.engines.core.components import EVERY_STEP
from qwen_image_engine.engines.core.contract import Contract
from qwen_image_engine.engines.core.contract_check import Array
from qwen_image_engine.engines.core.engine import Engine
from qwen_image_engine.engines.core.errors import QwenImageError


@dataclass
class Position:
    """The current position in a trajectory: the prompt, and the index of the step (0 until the first step is done)."""

    prompt: str = ""
    step: int = 0


class ObservedEngine:
    """A wrapper of an engine that runs it and adds its activations to sums."""

    def __init__(
        self,
        engine: Engine,
        network: nn.Module,
        observed: Mapping[str, ObservedTensor],
        sums: Mapping[str, InputSums],
        position: Position,
    ) -> None:
        """Wrap the engine of `network`. Every run adds to `sums`, and `position` gives the step of the run."""
        self._engine = engine
        self._network = network
        self._observed = observed
        self._sums = sums
        self._position = position

    @property
    def contract(self) -> Contract:
        """Contract of the wrapped engine."""
        return self._engine.contract

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the engine and count its activations; see `Engine.run`.

        Raises:
            QwenImageError: an activation is not finite; the text names component, linear, step and prompt.
        """
        with self._hooks():
            return self._engine.run(inputs)

    def close(self) -> None:
        """Close the wrapped engine; see `Engine.close`."""
        self._engine.close()

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        # For this run alone: prefix and step are one network, and each has sums of its own.
        handles: list[RemovableHandle] = []
        for name, tensor in self._observed.items():
            linear = self._network.get_submodule(tensor.module)
            if tensor.side == "input":
                handles.append(linear.register_forward_pre_hook(partial(self._count_input, name)))
            else:
                handles.append(linear.register_forward_hook(partial(self._count_output, name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _count_input(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._count(name, inputs[0], "its input")

    def _count_output(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._count(name, output, "the output")

    def _count(self, name: str, values: Tensor, what: str) -> None:
        try:
            self._sums[name].add(values, self._position.step)
        except FloatingPointError as error:
            component, prompt = self.contract.component, _short(self._position.prompt)
            where = f"step {self._position.step + 1}, " if component in EVERY_STEP else ""
            raise QwenImageError(
                f"{component}: {where}{name}: {error} of {what} are not finite (prompt {prompt}); "
                "check the checkpoint's weights, and where it ran in fp16, calibrate in bf16 or fp32"
            ) from error


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else f"{prompt[:57]}...")
