"""What is kept between requests: values by content hash, the least recently used of them gone first."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """Values up to a number of bytes in all; those of the last request stay, however large."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """The value, which is now the most recently used; None where it is not kept."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Key, value: Value, size: int) -> None:
        """Keep a value of `size` bytes."""
        self._values[key] = value, size
        self._values.move_to_end(key)

    def shrink(self, wanted: Collection[Key], room: int = 0) -> None:
        """Drop the oldest values but `wanted` until all of them and `room` bytes more are within the limit."""
        total = sum(size for _, size in self._values.values()) + room
        for key in [key for key in self._values if key not in wanted]:
            if total <= self._limit:
                break
            total -= self._values.pop(key)[1]


class Recent(Generic[Key, Value]):
    """At most `limit` values by key; the one whose use is longest ago goes first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of `key`, made where it is not there, after the oldest has gone: what that holds may be needed."""
        if key not in self._values:
            if len(self._values) == self._limit:
                self._values.popitem(last=False)
            self._values[key] = make()
        self._values.move_to_end(key)
        return self._values[key]

    def clear(self) -> None:
        """Let all of them go."""
        self._values.clear()
