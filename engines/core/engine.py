"""One small interface over every backend: a graph, its contract, `run`, `close`.

Backends and their packages are imported when asked for, never before.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from qwen_image_engine.engines.core.contract import Contract
from qwen_image_engine.engines.core.contract_check import Array as Array


class Engine(Protocol):
    """A component that is ready to run.

    Arrays that `run` returns belong to the caller: a later run does not overwrite them. Whether runs may overlap is
    each backend's to say; `close` must not overlap with a run.
    """

    @property
    def contract(self) -> Contract:
        """The tensors that `run` takes and returns."""
        ...

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name: arrays of numpy, but for keys and values on a GPU, which are a `DeviceArray` each.

        An engine on a GPU takes either; one on the CPU takes arrays of numpy alone.

        Raises:
            QwenImageError: inputs that do not match the contract, a run that failed, an engine that is closed.
        """
        ...

    def close(self) -> None:
        """Free the weights and the scratch memory. Closing twice is allowed; running afterwards is an error."""
        ...


@runtime_checkable
class CancellableEngine(Engine, Protocol):
    """An engine whose runs end early when another thread asks for it."""

    def cancel(self) -> None:
        """End the runs in work as soon as the backend can; each raises `Cancelled`, or ends as usual."""
        ...
