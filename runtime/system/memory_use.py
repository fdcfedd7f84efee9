"""The memory use of a process and its peaks, read from proc(5) and therefore on Linux only."""

from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Self

SAMPLE_S = 0.02
"""Time between two samples [s]. Filling a buffer that is large enough to count takes an engine longer."""

_FIELDS = {"RssAnon": "anonymous_bytes", "RssFile": "file_bytes", "VmRSS": "resident_bytes"}
_HIGHEST = "VmHWM"


@dataclass(frozen=True)
class MemoryUse:
    """The memory use of a process.

    Attributes:
        anonymous_bytes: memory that the process allocated; no file exists from which the system could restore it.
        file_bytes: pages of mapped files, which the system reclaims when it needs them.
        resident_bytes: both together, and shared memory.
    """

    anonymous_bytes: int
    file_bytes: int
    resident_bytes: int

    @classmethod
    def of(cls, process: int | str = "self") -> Self | None:
        """Read the memory use of a process by its id. Return None if the system does not report it."""
        told = _status(process)
        return cls(**{field: told[name] for name, field in _FIELDS.items()}) if told.keys() >= _FIELDS.keys() else None

    def peak(self, other: Self | None) -> Self:
        """Return the larger of each number. The numbers need not be from the same moment."""
        if other is None:
            return self
        return type(self)(
            max(self.anonymous_bytes, other.anonymous_bytes),
            max(self.file_bytes, other.file_bytes),
            max(self.resident_bytes, other.resident_bytes),
        )


class MemoryWatch:
    """A thread that samples a process's memory until it is closed, and records the peak since the last `restart`.

    Memory that is allocated and freed between two samples is missed, except in the largest peak of the process. The
    kernel counts that one itself, so the stage with the largest peak has the exact value.
    """

    def __init__(self, process: int | str = "self") -> None:
        self._process = process
        self._peak: MemoryUse | None = None
        self._overall: MemoryUse | None = None
        self._lock = Lock()
        self._closed = Event()
        self._highest_before = self._highest_at_first = highest_resident_bytes(process) or 0
        self._sample()
        self._thread = Thread(target=self._run, name="memory watch", daemon=True)
        self._thread.start()

    def restart(self) -> None:
        """Reset the peak. `overall` is not reset."""
        with self._lock:
            self._peak = None
        self._highest_before = highest_resident_bytes(self._process) or 0
        self._sample()

    def peak(self) -> MemoryUse | None:
        """Return the peak since the last `restart`; None if the system does not report memory."""
        self._sample()
        return self._raised(self._peak, self._highest_before)

    def overall(self) -> MemoryUse | None:
        """Return the peak since the watch was created; None if the system does not report memory."""
        self._sample()
        return self._raised(self._overall, self._highest_at_first)

    def _raised(self, sampled: MemoryUse | None, before: int) -> MemoryUse | None:
        highest = highest_resident_bytes(self._process) or 0
        if sampled is None or highest <= before:
            return sampled
        return replace(sampled, resident_bytes=max(sampled.resident_bytes, highest))

    def close(self) -> None:
        """Stop sampling. The peaks remain readable."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closed.wait(SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        now = MemoryUse.of(self._process)
        if now is not None:
            with self._lock:
                self._peak, self._overall = now.peak(self._peak), now.peak(self._overall)


def highest_resident_bytes(process: int | str = "self") -> int | None:
    """Return the peak resident bytes of a process, counted by the kernel; None if the system does not report them.

    `getrusage` would also count the memory that the parent process held when it started this one.
    """
    return _status(process).get(_HIGHEST)


def _status(process: int | str) -> dict[str, int]:
    """Return the bytes of each field that this module reads; empty if the system does not report them."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name: int(value.split()[0]) * 1024 for name, _, value in pairs if name in _FIELDS or name == _HIGHEST}
