"""The HTTP/1.1 protocol of uvicorn with bounds of time for slow clients, and errors in the API's form."""

from __future__ import annotations

import asyncio
import json
import sys

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from qwen_image_engine.runtime.serve.api.errors import ApiError
from qwen_image_engine.runtime.serve.api.limits import Limits
from qwen_image_engine.runtime.serve.guard import EarlyRefusals

_TEXTS = {
    408: "the head of the request did not arrive in time; send it faster",
    431: "the head of the request is too large; send fewer or shorter headers",
}


def bounded_protocol(limits: Limits, refusals: EarlyRefusals) -> type[H11Protocol]:
    """Return the protocol with the times of `limits`. What it refuses is noted in `refusals`."""

    class Bounded(_BoundedProtocol):
        header_s = limits.header_s
        write_s = limits.write_s
        early = refusals

    return Bounded


class _BoundedProtocol(H11Protocol):
    """A connection that ends if its client sends no whole head of a request in time, or takes nothing of a reply.

    After a refusal, what is left of a body is read and dropped, so that the client sees the refusal; a body that does
    not end in the time of a head ends the connection.
    """

    header_s: float
    write_s: float
    early: EarlyRefusals
    _head_due: asyncio.TimerHandle | None = None
    _write_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._expect_head()
        elif self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection."""
        for timer in (self._head_due, self._write_due):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Note that the client takes less than it is sent."""
        super().pause_writing()
        if self._write_due is None:
            self._write_due = self.loop.call_later(self.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that the client has taken most of what it was sent."""
        super().resume_writing()
        if self._write_due is not None:
            self._write_due.cancel()
            self._write_due = None

    def on_response_complete(self) -> None:
        """Note the end of a reply."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that has had no request for a while."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request of HTTP/1.1, or has too large a head."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        self._refuse(ApiError(status, _TEXTS.get(status, "this is no request of HTTP/1.1; send one")))

    def _expect_head(self) -> None:
        if self._head_due is None:
            self._head_due = self.loop.call_later(self.header_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_due = None
        begun = bool(self.conn.trailing_data[0])
        if self.conn.their_state is h11.IDLE and begun:
            self._refuse(ApiError(408, _TEXTS[408]))
        elif self.cycle is None or self.conn.their_state is not h11.IDLE:  # nothing came, or a body without an end
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Send an error if no other reply has begun, and end the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            body = json.dumps(error.document()).encode()
            identity = self.early.note(error.status, self.client[0] if self.client else None)
            headers = [
                (b"x-request-id", identity.encode()),
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            for event in (
                h11.Response(status_code=error.status, headers=headers, reason=b""),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        """End a connection that was closed even if its client takes the last bytes never."""
        self.loop.call_later(self.write_s, self.transport.abort)
