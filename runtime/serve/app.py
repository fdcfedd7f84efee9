"""The routes of the server: a Starlette application around one worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from qwen_image_engine.runtime.serve.api.bodies import read_form, read_json
from qwen_image_engine.runtime.serve.api.errors import ApiError, drawing_error
from qwen_image_engine.runtime.serve.api.fields import ENDPOINTS, Endpoint, RequestForm, request_fields
from qwen_image_engine.runtime.serve.api.limits import Limits
from qwen_image_engine.runtime.serve.api.openapi import openapi_document
from qwen_image_engine.runtime.serve.api.replies import About, JsonReply, Tokens, error_event, error_reply
from qwen_image_engine.runtime.serve.guard import Access, Guard
from qwen_image_engine.runtime.serve.job import Ended, Event, FinishedPicture, Job, PartialPicture, Progress
from qwen_image_engine.runtime.serve.links import Links
from qwen_image_engine.runtime.serve.log import Log
from qwen_image_engine.runtime.serve.metrics import CONTENT_TYPE, Metrics
from qwen_image_engine.runtime.serve.models import Models
from qwen_image_engine.runtime.serve.page.routes import page_routes
from qwen_image_engine.runtime.serve.prepare import check_together, prepare_job
from qwen_image_engine.runtime.serve.worker import Worker

_KEPT_ALIVE_S = 15.0
"""Seconds without an event after which a stream sends a comment, so that nothing between takes it for dead."""


@dataclass(frozen=True)
class Service:
    """The parts of a running server.

    Attributes:
        models: the models.
        worker: the worker, started or not.
        links: files for `response_format: url`.
        metrics: the counters.
        log: the log.
        limits: the bounds.
        access: the clients that may ask.
    """

    models: Models
    worker: Worker
    links: Links
    metrics: Metrics
    log: Log
    limits: Limits
    access: Access

    @classmethod
    def create(cls, models: Models, log: Log, limits: Limits | None = None, access: Access | None = None) -> Service:
        """Create a service whose worker does not run yet."""
        limits = limits or Limits()
        metrics = Metrics()
        worker = Worker(models, limits.queue, metrics, log)
        metrics.gauge("queue_length", "requests that wait", lambda: worker.waiting)
        metrics.gauge("working", "whether a request is in work or waits", lambda: worker.busy)
        return cls(models, worker, Links(limits), metrics, log, limits, access or Access())

    def close(self) -> None:
        """Cancel all work, wait for it, and free everything."""
        self.worker.close()
        self.models.close()
        self.links.close()


def application(service: Service) -> Starlette:
    """Return the application of a service, whose worker the caller starts and closes."""
    return Starlette(
        routes=_Routes(service).table(),
        middleware=[Middleware(Guard, access=service.access, metrics=service.metrics, log=service.log)],
        exception_handlers={ApiError: _on_error, HTTPException: _on_http_error},
    )


class _Routes:
    """The handlers of all routes."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._fields = request_fields(service.limits)
        self._forms = {endpoint: RequestForm(self._fields, endpoint) for endpoint in ENDPOINTS}
        self._document = openapi_document(self._forms)
        self._bodies = 0
        # One at a time: the largest picture takes a quarter of a gigabyte before it is fitted.
        self._decoding = anyio.CapacityLimiter(1)

    def table(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/v1/images/generations", self.generations, methods=["POST"]),
            Route("/v1/images/edits", self.edits, methods=["POST"]),
            Route("/v1/images/files/{token}.{suffix}", self.file, methods=["GET"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.model, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
            *page_routes(),
        ]

    async def generations(self, request: Request) -> Response:
        """Draw pictures of a prompt."""
        self._admit()
        self._bodies += 1
        try:
            values = await read_json(request, self._forms["generations"], self._service.limits)
        finally:
            self._bodies -= 1
        job, tokens, events = await self._prepare(request, values)
        return await self._answer(request, "generations", values, job, tokens, events)

    async def edits(self, request: Request) -> Response:
        """Draw pictures of a prompt and reference images."""
        self._admit()
        self._bodies += 1
        try:
            async with read_form(request, self._forms["edits"], self._service.limits) as values:
                job, tokens, events = await self._prepare(request, values)
        finally:
            self._bodies -= 1
        return await self._answer(request, "edits", values, job, tokens, events)

    async def models(self, request: Request) -> Response:
        """List the models."""
        return JsonReply({"object": "list", "data": [model.document() for model in self._service.models.all]})

    async def model(self, request: Request) -> Response:
        """Describe a model."""
        return JsonReply(self._service.models.find(request.path_params["name"]).document())

    async def file(self, request: Request) -> Response:
        """Send a picture that was asked for by `response_format: url`."""
        found = await anyio.to_thread.run_sync(self._service.links.read, request.path_params["token"])
        if found is None or found[1] != request.path_params["suffix"]:
            raise ApiError(404, "there is no such picture, or not any more; draw it again", code="not_found")
        headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
        return Response(found[0], media_type=f"image/{found[1]}", headers=headers)

    async def health(self, request: Request) -> Response:
        """Tell that the process is alive."""
        return JsonReply({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Tell whether the models are loaded and requests are taken."""
        worker = self._service.worker
        if worker.draining:
            raise ApiError(503, "the server is stopping", code="draining")
        if not worker.ready.is_set() or worker.failure is not None:
            raise ApiError(503, "the models are not loaded yet", code="loading", headers={"Retry-After": "5"})
        return JsonReply({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Return the counters in Prometheus's form."""
        return Response(self._service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        """Return the OpenAPI document."""
        return JsonReply(self._document)

    def _admit(self) -> None:
        """Raise if a request for pictures would be refused, before its body is read.

        Raises:
            ApiError: the queue is full, too many bodies are read at the moment, or the server is stopping.
        """
        self._service.worker.check_room()
        if self._bodies >= self._service.limits.bodies:
            text = f"{self._bodies} requests are being read, which is the most; ask again in a second"
            raise ApiError(429, text, code="too_many_uploads", headers={"Retry-After": "1"})

    async def _prepare(self, request: Request, values: Mapping[str, Any]) -> tuple[Job, Tokens, asyncio.Queue[Event]]:
        """Prepare the job of a request.

        Raises:
            ApiError: the request cannot be drawn.
        """
        model = self._service.models.find(values["model"])
        check_together(values)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def deliver(event: Event) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:  # the loop has ended, and with it whoever waited
                job.cancel()

        work = partial(prepare_job, values, model, self._service.limits, deliver, request.state.id, self._service.links)
        try:
            job, tokens = await anyio.to_thread.run_sync(work, limiter=self._decoding if "image" in values else None)
        except ApiError:
            raise
        except Exception as error:
            found = drawing_error(error)
            if found.status >= 500:
                self._service.log.failure("failed", error, id=request.state.id)
            raise found from error
        return job, tokens, events

    async def _answer(
        self,
        request: Request,
        endpoint: Endpoint,
        values: Mapping[str, Any],
        job: Job,
        tokens: Tokens,
        events: asyncio.Queue[Event],
    ) -> Response:
        """Submit a job, and return its pictures or a stream of them.

        Raises:
            ApiError: the queue is full, or the job failed.
            ClientDisconnect: the client left.
        """
        output, drawn = job.output, job.request
        size = f"{drawn.width}x{drawn.height}"
        about = About(endpoint, output.background, output.format, values["quality"], size)
        self._service.worker.submit(job)
        if values["stream"]:
            return _Stream(self._stream(job, about, tokens, events), partial(self._service.worker.cancel, job))
        leaving = asyncio.create_task(_left(request))
        drawing = asyncio.create_task(_finished(events))
        try:
            await asyncio.wait({leaving, drawing}, return_when=asyncio.FIRST_COMPLETED)
            if not drawing.done():
                raise ClientDisconnect
            pictures = drawing.result()
        finally:
            self._service.worker.cancel(job)
            leaving.cancel()
            drawing.cancel()
        data = [_picture(request, output.format, picture) for picture in pictures]
        return await anyio.to_thread.run_sync(JsonReply, about.reply(data, tokens))

    async def _stream(
        self, job: Job, about: About, tokens: Tokens, events: asyncio.Queue[Event]
    ) -> AsyncIterator[bytes]:
        """Yield the server-sent events of a job. A step is a comment, which clients of the API pass over."""
        while True:
            try:
                event = await asyncio.wait_for(events.get(), _KEPT_ALIVE_S)
            except TimeoutError:
                yield b": waiting\n\n"
                continue
            match event:
                case Progress(picture, step, steps):
                    yield f": picture {picture + 1} of {len(job.seeds)}, step {step} of {steps}\n\n".encode()
                case PartialPicture(_, index, b64):
                    yield about.event("partial_image", b64_json=b64, partial_image_index=index)
                case FinishedPicture(_, seed, b64, _):
                    yield about.event("completed", b64_json=b64, seed=seed, usage=tokens.document(1))
                case Ended(error):
                    if error is not None:
                        yield error_event(error)
                    return


class _Stream(StreamingResponse):
    """A reply of server-sent events. `end` is called at its end, also where the client left before its first byte."""

    def __init__(self, events: AsyncIterator[bytes], end: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


async def _left(request: Request) -> None:
    """Wait until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _finished(events: asyncio.Queue[Event]) -> list[FinishedPicture]:
    """Wait for all pictures of a job.

    Raises:
        ApiError: the job failed.
    """
    pictures: list[FinishedPicture] = []
    while True:
        event = await events.get()
        if isinstance(event, FinishedPicture):
            pictures.append(event)
        if isinstance(event, Ended):
            if event.error is not None:
                raise event.error
            return pictures


def _picture(request: Request, suffix: str, picture: FinishedPicture) -> dict[str, Any]:
    if picture.token is None:
        return {"b64_json": picture.b64, "seed": picture.seed}
    url = request.url.replace(path=f"/v1/images/files/{picture.token}.{suffix}", query="")
    return {"url": str(url), "seed": picture.seed}


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_reply(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Return the reply to a path or a method that does not exist."""
    assert isinstance(error, HTTPException)
    texts = {
        404: f"there is no {request.method} {request.url.path[:200]}; /openapi.json lists what there is",
        405: f"{request.url.path[:200]} does not take {request.method}",
    }
    text = texts.get(error.status_code, error.detail)
    return error_reply(ApiError(error.status_code, text, headers=error.headers))
