"""An LRU cache limited in bytes or in the number of its values."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """A cache of values by key. Each value has a size, in bytes or 1.

    `shrink` evicts values until their sizes are at most `limit` in all. It never evicts pinned values.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """Return the value, which is now the most recently used, or None if the cache does not have it."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Key, value: Value, size: int = 1) -> None:
        """Add a value as the most recently used, beyond the limit if need be: `shrink` evicts others."""
        self._values[key] = value, size
        self._values.move_to_end(key)

    def get_or_make(self, key: Key, make: Callable[[], Value]) -> Value:
        """Return the value of `key`. If the cache does not have it, evict for it first, then make and add it.

        An evicted value may hold a resource, such as device memory, that the new value needs.
        """
        if key not in self._values:
            self.shrink((), room=1)
            self.put(key, make())
        self._values.move_to_end(key)
        return self._values[key][0]

    def shrink(self, pinned: Collection[Key], room: int = 0) -> None:
        """Evict the least recently used values, except `pinned`, until all values and `room` are within the limit."""
        total = sum(size for _, size in self._values.values()) + room
        for key in [key for key in self._values if key not in pinned]:
            if total <= self._limit:
                break
            total -= self._values.pop(key)[1]

    def clear(self) -> None:
        """Evict all values."""
        self._values.clear()
