"""The process of the server: listens, and ends on a signal after the work that it has taken."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.serve.app import Service, application
from qwen_image_engine.runtime.serve.guard import EarlyRefusals, is_loopback
from qwen_image_engine.runtime.serve.log import LogHandler
from qwen_image_engine.runtime.serve.protocol import bounded_protocol
from qwen_image_engine.runtime.system.interruption import handed_over

GRACE_S = 30.0
_LAST_REPLIES_S = 5
"""Seconds for the replies that remain after the grace: errors of cancelled pictures, and clients that take the last
bytes slowly."""
_TICK_S = 0.1
_LOOK_S = 0.01


def check_reach(host: str, key: str | None, allow_remote: bool) -> None:
    """Raise if a server would be open to other machines by accident.

    Raises:
        UsageError: the host is not a loopback address, and there is neither a key nor leave.
    """
    if not is_loopback(host) and key is None and not allow_remote:
        raise UsageError(
            f"--host {host} is reached from other machines, expected an API key for that; give --api-key, or set "
            "QWEN_IMAGE_API_KEY, or say --allow-remote"
        )


def loopback_names(host: str) -> tuple[str, ...]:
    """Return the names by which clients call a server on `host`; empty if it is reached by any."""
    return ("localhost", "127.0.0.1", "::1", host.lower()) if is_loopback(host) else ()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Port 0 is any that is free.

    Raises:
        QwenImageError: the address does not exist here, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise QwenImageError(f"cannot listen on {host} port {port} ({reason}); choose another --port") from error
    # Connections inherit it. The end of a short reply would wait 40 ms for a client to acknowledge its head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server:
    """A server on a listening socket.

    Until `stop`, it takes requests. Then it answers requests for pictures with 503 and finishes the work that it has
    taken. What is not finished after the grace, or at a second `stop`, is cancelled within a step.
    """

    def __init__(self, service: Service, listener: socket.socket, grace_s: float = GRACE_S) -> None:
        """Create a server that does not run yet.

        Args:
            service: the service, whose worker `run` starts and closes.
            listener: a listening socket, which `run` closes.
            grace_s: time for the work that was taken [s].
        """
        config = uvicorn.Config(
            application(service),
            loop="asyncio",
            http=bounded_protocol(service.limits, EarlyRefusals(service.metrics, service.log)),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=service.limits.header_bytes,
        )
        self._service = service
        self._listener = listener
        self._server = _DrainingServer(config, service, grace_s)

    def run(self) -> None:
        """Serve until `stop`, which the signals Ctrl-C, SIGTERM and SIGHUP call if this is the main thread.

        Raises:
            QwenImageError: the models cannot be loaded.
        """
        service = self._service
        names = [model.name for model in service.models.all]
        with _libraries_log(service):
            service.worker.start()
            service.log.write("listening", address=address_of(self._listener), models=names)
            try:
                with handed_over(self.stop):
                    self._server.run(sockets=[self._listener])
            finally:
                service.close()
                self._listener.close()
        if service.worker.failure is not None:
            raise service.worker.failure
        service.log.write("stopped")

    def stop(self) -> None:
        """Take no more work; at a second call, give the rest no more time. Any thread may call it."""
        self._server.stop()


class _DrainingServer(uvicorn.Server):
    """A server that drains before it closes its socket, and that does not sleep through its end."""

    def __init__(self, config: uvicorn.Config, service: Service, grace_s: float) -> None:
        super().__init__(config)
        self._service = service
        self._grace_s = grace_s
        self._until: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to others: uvicorn would raise them again at its end, and the exit code would not be 0."""
        yield

    def stop(self) -> None:
        """Begin to drain; at a second call, end."""
        first = self._until is None
        busy = self._service.worker.busy
        self._service.log.write(
            "draining", grace=self._grace_s if first else 0, waiting=self._service.worker.waiting, busy=busy
        )
        self._until = time.monotonic() + (self._grace_s if first else 0)
        self._service.worker.drain()
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._woken.set)

    async def main_loop(self) -> None:
        """Run until the server ends: look ten times a second, and at once after `stop`."""
        self._loop = asyncio.get_running_loop()
        counter = 0
        while not await self.on_tick(counter):
            counter += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), _TICK_S)
            self._woken.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and wait for the last replies, no longer than there are any."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_REPLIES_S):
                while self.server_state.connections or self.server_state.tasks:
                    await asyncio.sleep(_LOOK_S)
        for task in self.server_state.tasks:
            task.cancel()

    async def on_tick(self, counter: int) -> bool:
        """Return whether the server ends now."""
        if self._until is not None and not self.should_exit:
            late = time.monotonic() >= self._until
            if late or not (self._service.worker.busy or self.server_state.tasks):
                self._service.log.write("closing", cancels=self._service.worker.busy)
                self._service.worker.cancel_all()
                self.should_exit = True
        if self._service.worker.failure is not None:
            self.should_exit = True
        return await super().on_tick(counter)


@contextmanager
def _libraries_log(service: Service) -> Iterator[None]:
    """Write the libraries' warnings to the service's log."""
    handler = LogHandler(service.log)
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio", "python_multipart")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
