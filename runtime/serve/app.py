"""The routes of the server: a Starlette application around one worker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from qwen_image_engine.runtime.serve.answers import Events, about, answer
from qwen_image_engine.runtime.serve.api.bodies import read_form, read_json
from qwen_image_engine.runtime.serve.api.errors import ApiError, drawing_error
from qwen_image_engine.runtime.serve.api.fields import ENDPOINTS, RequestForm, request_fields
from qwen_image_engine.runtime.serve.api.limits import Limits
from qwen_image_engine.runtime.serve.api.openapi import openapi_document
from qwen_image_engine.runtime.serve.api.replies import JsonReply, Tokens, error_reply
from qwen_image_engine.runtime.serve.api.slots import BodySlots
from qwen_image_engine.runtime.serve.guard import Access, Guard
from qwen_image_engine.runtime.serve.job import Event, Job
from qwen_image_engine.runtime.serve.links import Links
from qwen_image_engine.runtime.serve.log import Log
from qwen_image_engine.runtime.serve.metrics import CONTENT_TYPE, Metrics
from qwen_image_engine.runtime.serve.models import Models
from qwen_image_engine.runtime.serve.page.routes import page_routes
from qwen_image_engine.runtime.serve.prepare import check_together, prepare_job
from qwen_image_engine.runtime.serve.worker import Worker


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
        self._slots = BodySlots(service.limits)
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
        with self._slot(request):
            values = await read_json(request, self._forms["generations"], self._service.limits)
        job, tokens, events = await self._prepare(request, values)
        return await answer(request, about("generations", values, job), job, tokens, events, self._service.worker)

    async def edits(self, request: Request) -> Response:
        """Draw pictures of a prompt and reference images."""
        with self._slot(request):
            async with read_form(request, self._forms["edits"], self._service.limits) as values:
                job, tokens, events = await self._prepare(request, values)
        return await answer(request, about("edits", values, job), job, tokens, events, self._service.worker)

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

    def _slot(self, request: Request) -> AbstractContextManager[None]:
        """Return a place for the body of a request for pictures, which is refused before it is read if it would be.

        Raises:
            ApiError: the queue is full, or the server is stopping; the block raises if too many bodies are being read.
        """
        self._service.worker.check_room()
        return self._slots.one(request.client.host if request.client else None)

    async def _prepare(self, request: Request, values: Mapping[str, Any]) -> tuple[Job, Tokens, Events]:
        """Prepare the job of a request.

        Raises:
            ApiError: the request cannot be drawn.
        """
        model = self._service.models.find(values["model"])
        check_together(values)
        loop = asyncio.get_running_loop()
        events: Events = asyncio.Queue()

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
