"""The bodies that are read at the same time: bounded for all clients together and for each address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address

from qwen_image_engine.runtime.serve.api.errors import ApiError
from qwen_image_engine.runtime.serve.api.limits import Limits
from qwen_image_engine.runtime.system.text import plural

_NETWORK_BITS = 64
"""Bits of the part of an IPv6 address that a client cannot choose."""

_READ = ("request is", "requests are")


class BodySlots:
    """The places of requests whose bodies are read. The event loop's thread alone uses an object."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._taken: Counter[str] = Counter()

    @contextmanager
    def one(self, host: str | None) -> Iterator[None]:
        """Take a place for the block.

        Args:
            host: address of the client; None if it has none.

        Raises:
            ApiError: all places are taken, or those that one address may have.
        """
        client = client_of(host)
        found, most = self._taken.total(), self._limits.bodies
        if found >= most:
            raise _refusal(f"{plural(found, *_READ)} being read, which is the most")
        found = self._taken[client]
        if found >= self._limits.client_bodies:
            raise _refusal(f"{plural(found, *_READ)} being read from your address, which is the most of one address")
        self._taken[client] += 1
        try:
            yield
        finally:
            self._taken[client] -= 1
            self._taken += Counter()  # drops those that have none


def client_of(host: str | None) -> str:
    """Return the client of an address: the address itself, and of IPv6 the network that one client has."""
    try:
        address = ip_address(host or "")
    except ValueError:
        return host or ""
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{int(address) >> (128 - _NETWORK_BITS):x}"


def _refusal(text: str) -> ApiError:
    return ApiError(429, f"{text}; ask again in a second", code="too_many_uploads", headers={"Retry-After": "1"})
