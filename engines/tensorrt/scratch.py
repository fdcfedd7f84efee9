"""One buffer for the activations of all engines: no two of them run together, so each needs it whole, but in turn."""

from collections.abc import Callable

from qwen_image_engine.engines.core.device_array import DeviceMemory


class Scratch:
    """Device memory as large as the largest call so far; it goes when the last engine that used it is closed.

    Its address changes where it grows: an execution context has to be told, and its graph captured again.
    """

    def __init__(self, allocate: Callable[[int], DeviceMemory]) -> None:
        self._allocate = allocate
        self._memory: DeviceMemory | None = None
        self._bytes = 0
        self._users: set[int] = set()

    @property
    def nbytes(self) -> int:
        """That are allocated now."""
        return self._bytes

    def address(self, user: object, nbytes: int) -> int:
        """Where `user`, an engine, finds so many bytes. Nothing may be running.

        Raises:
            OutOfDeviceMemory: there are not so many.
        """
        self._users.add(id(user))
        if self._memory is None or nbytes > self._bytes:
            self._memory, self._bytes = None, 0  # freed first: both need not fit
            self._memory = self._allocate(max(nbytes, 1))
            self._bytes = nbytes
        return self._memory.address

    def release(self, user: object) -> None:
        """Say that `user` will not run any more."""
        self._users.discard(id(user))
        if not self._users:
            self._memory, self._bytes = None, 0
