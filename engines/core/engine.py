"""The interface of an engine, the same for every backend: `contract`, `run`, `close`.

Backends and their packages are imported when they are first asked for.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from qwen_image_engine.engines.core.contract import Contract
from qwen_image_engine.engines.core.contract_check import Array as Array


class Engine(Protocol):
    """A component that is loaded and ready to run.

    The caller owns the arrays that `run` returns: a later run does not overwrite them. Each backend states whether runs
    may overlap. `close` must not overlap with a run.
    """

    @property
    def contract(self) -> Contract:
        """Tensors that `run` takes and returns."""
        ...

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the component and return the outputs by name.

        Outputs are numpy arrays, except keys and values on a GPU, each of which is a `DeviceArray`. An engine on a GPU
        takes both kinds as inputs. An engine on the CPU takes numpy arrays alone.

        Raises:
            QwenImageError: the inputs do not match the contract, the run failed, or the engine is closed.
        """
        ...

    def close(self) -> None:
        """Free the weights and the scratch memory. Closing twice is allowed; running afterwards is an error."""
        ...


@runtime_checkable
class CancellableEngine(Engine, Protocol):
    """An engine whose runs another thread can cancel."""

    def cancel(self) -> None:
        """End the current runs as soon as the backend can. Each run raises `Cancelled`, or ends as usual."""
        ...
