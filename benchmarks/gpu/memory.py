"""Memory of the device: the peak of torch's allocations, and the memory of engines outside torch."""

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
    """Return the peak of torch's allocations since `reset_peak` in bytes. None on a CPU."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None


def used_bytes(device: torch.device) -> int | None:
    """Return the bytes that all processes have allocated on the device now. None on a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free


class Held:
    """The memory of the device above its level at the first sample, before an engine was loaded.

    Torch's allocations in that time, such as the velocity, count as well.
    """

    def __init__(self, device: torch.device, used: Used = used_bytes) -> None:
        self._device, self._used = device, used
        self._before: int | None = None
        self.most: int | None = None
        """Highest sample in bytes; None on a CPU."""

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Sample in a thread until the end of the block. Do not use it around timed code."""
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
