"""What a process holds in memory, and the most it held while something ran; from proc(5), so on Linux alone."""

from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Self

SAMPLE_S = 0.02
"""Time between two readings: an engine takes longer to fill the smallest buffer that matters."""

_FIELDS = {"RssAnon": "anonymous_bytes", "RssFile": "file_bytes", "VmRSS": "resident_bytes"}
_HIGHEST = "VmHWM"


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of a process.

    Attributes:
        anonymous_bytes: what it allocated; no other process and no file can give these pages back.
        file_bytes: pages of mapped files, which the system takes when it needs them.
        resident_bytes: both, and shared memory.
    """

    anonymous_bytes: int
    file_bytes: int
    resident_bytes: int

    @classmethod
    def of(cls, process: int | str = "self") -> Self | None:
        """Read that of a process, given by its id; None where the system or the process does not tell."""
        told = _status(process)
        return cls(**{field: told[name] for name, field in _FIELDS.items()}) if told.keys() >= _FIELDS.keys() else None

    def peak(self, other: Self | None) -> Self:
        """The larger of each number, which need not be of one moment."""
        if other is None:
            return self
        return type(self)(
            max(self.anonymous_bytes, other.anonymous_bytes),
            max(self.file_bytes, other.file_bytes),
            max(self.resident_bytes, other.resident_bytes),
        )


class MemoryWatch:
    """Reads a process's memory in a thread until it is closed, and keeps the peak since the last `restart`.

    What is given back between two readings is missed, unless it made the most that was ever resident: the kernel counts
    that on its own, so the highest stage of a process has the process's peak.
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
        """Forget the peak; `overall` stays."""
        with self._lock:
            self._peak = None
        self._highest_before = highest_resident_bytes(self._process) or 0
        self._sample()

    def peak(self) -> MemoryUse | None:
        """The peak since the last `restart`, None where the system does not tell."""
        self._sample()
        return self._raised(self._peak, self._highest_before)

    def overall(self) -> MemoryUse | None:
        """The peak since this was made."""
        self._sample()
        return self._raised(self._overall, self._highest_at_first)

    def _raised(self, sampled: MemoryUse | None, before: int) -> MemoryUse | None:
        highest = highest_resident_bytes(self._process) or 0
        if sampled is None or highest <= before:
            return sampled
        return replace(sampled, resident_bytes=max(sampled.resident_bytes, highest))

    def close(self) -> None:
        """Stop reading; peaks stay."""
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
    """The most that was ever resident in a process, as the kernel counted it; None where it does not tell.

    `getrusage` would also count what the process that started this one held then.
    """
    return _status(process).get(_HIGHEST)


def _status(process: int | str) -> dict[str, int]:
    """Bytes by field, of those that are asked for here; empty where the system or the process does not tell."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name: int(value.split()[0]) * 1024 for name, _, value in pairs if name in _FIELDS or name == _HIGHEST}
