"""The decision when repeating work is captured as a CUDA graph, when it is replayed, and when a capture is void."""

from collections.abc import Hashable
from typing import Literal

Action = Literal["run", "capture", "replay"]


class Replay:
    """The replay of one execution context: the first call runs, the second is captured, all later calls are replayed.

    TensorRT sets itself up in the first call of a shape, so that call must not be captured. A graph holds the sizes and
    addresses that it was captured with. If any of them changes, the sequence begins again.
    """

    def __init__(self) -> None:
        self._held: Hashable = None
        self._calls = 0

    def next(self, held: Hashable) -> Action:
        """Return the action for a call whose graph would hold `held`."""
        self._calls = self._calls + 1 if held == self._held else 1
        self._held = held
        if self._calls == 1:
            return "run"
        return "capture" if self._calls == 2 else "replay"

    def forget(self) -> None:
        """Restart the sequence after a call that failed."""
        self._calls = 0
