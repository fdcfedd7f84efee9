"""The guard in front of all routes: who may ask, the id of each request, its line in the log, and faults in words."""

from __future__ import annotations

import hmac
import secrets
import time
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen_image_engine.runtime.serve.api.errors import ApiError, drawing_error
from qwen_image_engine.runtime.serve.api.replies import error_reply
from qwen_image_engine.runtime.serve.log import Log
from qwen_image_engine.runtime.serve.metrics import Metrics

_LEFT = 499
"""Status in the log of a request whose client left before the reply, as nginx writes it."""

_KEYED = ("/v1/", "/metrics")
_OPEN = ("/v1/images/files/",)
"""Paths that need the key, and of those the paths that do not: the token in their address is a key of its own."""

_READY = "/ready"
_PICTURES = ("/v1/images/generations", "/v1/images/edits")


@dataclass(frozen=True)
class Access:
    """The clients that may ask.

    Attributes:
        key: API key; None if there is none.
        hosts: names by which a server on the loopback interface may be called; empty for any. A page in a browser that
            has bound a name of its own to this address (DNS rebinding) calls by another.
    """

    key: str | None = None
    hosts: tuple[str, ...] = ()

    def check(self, path: str, headers: Headers) -> None:
        """Raise if a request may not be answered.

        Raises:
            ApiError: the request has no key or a wrong one, calls the server by a foreign name, or comes from a page of
                another origin.
        """
        host = headers.get("host", "")
        if self.hosts and _name(host) not in self.hosts:
            raise ApiError(403, "this server is called by a foreign name; call it by its address", code="foreign_host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise ApiError(403, "pages of other origins may not use this server", code="foreign_origin")
        if self.key is None or not path.startswith(_KEYED) or path.startswith(_OPEN):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self.key.encode())
        if scheme.lower() != "bearer" or not same:
            text = "the API key is missing or wrong; send the header Authorization: Bearer KEY"
            raise ApiError(401, text, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _name(host: str) -> str | None:
    """Return the name in a header `Host`, without the port; None if it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host to listen on."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """The middleware around the application. Each request gets an id, which its reply and its lines in the log have."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics, log: Log) -> None:
        self._app = app
        self._access = access
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = new_id()
        scope.setdefault("state", {})["id"] = identity
        began = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = identity
            await send(message)

        try:
            self._access.check(scope["path"], Headers(scope=scope))
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = _LEFT
        except Exception as error:
            if not isinstance(error, ApiError):
                self._metrics.failures.inc()
                self._log.failure("fault", error, id=identity)
            if status:  # the head of the reply is on its way: the connection ends without its end
                raise
            await error_reply(drawing_error(error))(scope, receive, send_with_id)
        finally:
            self._note(scope, identity, status or _LEFT, time.perf_counter() - began)

    def _note(self, scope: Scope, identity: str, status: int, seconds: float) -> None:
        asked = scope["path"] == _READY and status == 503  # the answer to a question, as 200 is
        if not asked and status != _LEFT:
            count_refusal(self._metrics, status)
        if scope["path"] in _PICTURES:
            self._metrics.requests.observe(seconds)
        client = scope.get("client")
        self._log.write(
            "request",
            id=identity,
            client=client[0] if client else None,
            method=scope["method"],
            path=scope["path"][:500],
            status=status,
            seconds=round(seconds, 4),
        )


class EarlyRefusals:
    """The refusals of connections whose request has no whole head, and so does not come to the guard."""

    def __init__(self, metrics: Metrics, log: Log) -> None:
        self._metrics = metrics
        self._log = log

    def note(self, status: int, client: str | None) -> str:
        """Count and log a refusal. Return the id of its reply."""
        identity = new_id()
        count_refusal(self._metrics, status)
        self._log.write("request", id=identity, client=client, status=status)
        return identity


def new_id() -> str:
    """Return the id of a request."""
    return f"req_{secrets.token_hex(12)}"


def count_refusal(metrics: Metrics, status: int) -> None:
    """Count a reply if its status is that of a refusal."""
    if 400 <= status < 500 or status == 503:
        metrics.refusals.labels(str(status)).inc()
