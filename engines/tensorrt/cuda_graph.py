"""CUDA graphs: when work that repeats is captured, when it is replayed, and when a capture no longer holds."""

from collections.abc import Hashable
from typing import Literal

Action = Literal["run", "capture", "replay"]


class Replay:
    """Of one execution context: the first call runs, the second is captured, those after it are replayed.

    TensorRT sets itself up in the first call of a shape, which therefore must not be captured. A graph holds the sizes
    and addresses that it was captured with: where any of them changes all begins again.
    """

    def __init__(self) -> None:
        self._held: Hashable = None
        self._calls = 0

    def next(self, held: Hashable) -> Action:
        """What to do with a call of which a graph would hold `held`."""
        self._calls = self._calls + 1 if held == self._held else 1
        self._held = held
        if self._calls == 1:
            return "run"
        return "capture" if self._calls == 2 else "replay"

    def forget(self) -> None:
        """Begin again, after a call that failed."""
        self._calls = 0
