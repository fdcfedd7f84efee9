"""The choice for each call of an execution context: run, capture as a CUDA graph, or replay."""

from collections.abc import Hashable
from typing import Literal

Action = Literal["run", "capture", "replay"]


class Replay:
    """The sequence of calls of one execution context: run the first, capture the second, replay all later calls.

    TensorRT sets itself up in the first call of a shape, so that call must not be captured. A graph holds the sizes and
    addresses that it was captured with. If any of them changes, the sequence begins again.
    """

    def __init__(self) -> None:
        self._held: Hashable = None
        self._calls = 0

    def next(self, held: Hashable) -> Action:
        """Return the action for a call whose sizes and addresses are `held`."""
        self._calls = self._calls + 1 if held == self._held else 1
        self._held = held
        if self._calls == 1:
            return "run"
        return "capture" if self._calls == 2 else "replay"

    def forget(self) -> None:
        """Restart the sequence after a call that failed."""
        self._calls = 0
