"""A buffer for the activations of all engines. Engines run one at a time, so each uses the whole buffer in turn."""

from collections.abc import Callable

from qwen_image_engine.engines.core.device_array import DeviceMemory


class Scratch:
    """Device memory as large as the largest call so far. It is freed when the last engine that used it is closed.

    The address changes if the buffer grows. The execution contexts must then be given the new address, and their CUDA
    graphs must be captured again.
    """

    def __init__(self, allocate: Callable[[int], DeviceMemory]) -> None:
        self._allocate = allocate
        self._memory: DeviceMemory | None = None
        self._bytes = 0
        self._users: set[int] = set()

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self._bytes

    def address(self, user: object, nbytes: int) -> int:
        """Return the address of at least `nbytes` of scratch memory for `user`, an engine. Nothing may be running.

        Raises:
            OutOfDeviceMemory: the device has not enough free memory.
        """
        self._users.add(id(user))
        if self._memory is None or nbytes > self._bytes:
            self._memory, self._bytes = None, 0  # freed first: both need not fit
            self._memory = self._allocate(max(nbytes, 1))
            self._bytes = nbytes
        return self._memory.address

    def release(self, user: object) -> None:
        """Mark `user` as closed: it runs no more. The buffer is freed if no other user is left."""
        self._users.discard(id(user))
        if not self._users:
            self._memory, self._bytes = None, 0
