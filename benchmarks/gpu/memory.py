"""Memory of the device: the most that torch held, and what an engine beside torch holds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import torch

_EVERY_SECONDS = 0.01

Used = Callable[[torch.device], int | None]


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: torch.device) -> int | None:
    """The most that torch has held since `reset_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None


def used_bytes(device: torch.device) -> int | None:
    """All that is allocated on the device now, by whomever; None on a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free


class Held:
    """What the device holds beyond what it held when this was first sampled, before an engine was loaded.

    What torch allocates meanwhile, the velocity for one, counts as well.
    """

    def __init__(self, device: torch.device, used: Used = used_bytes) -> None:
        self._device, self._used = device, used
        self._before: int | None = None
        self.most: int | None = None
        """Bytes, the most that was seen; None on a CPU."""

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Look again and again until the end of the block, in a thread: not around anything that is timed."""
        if self._before is None:
            self._before = self._used(self._device)
        ended = Event()

        def look() -> None:
            while not ended.wait(_EVERY_SECONDS):
                self._look()

        thread = Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._look()  # what is held at the end is seen however short the block is
            ended.set()
            thread.join()

    def _look(self) -> None:
        now = self._used(self._device)
        if now is not None and self._before is not None:
            self.most = max(self.most or 0, now - self._before)
