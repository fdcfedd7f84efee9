"""The answers to requests for pictures: a reply with all of them, or a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from qwen_image_engine.runtime.serve.api.fields import Endpoint
from qwen_image_engine.runtime.serve.api.replies import About, JsonReply, Tokens, error_event
from qwen_image_engine.runtime.serve.job import Ended, Event, FinishedPicture, Job, PartialPicture, Progress
from qwen_image_engine.runtime.serve.worker import Worker

_KEPT_ALIVE_S = 15.0
"""Seconds without an event after which a stream sends a comment, so that nothing between takes it for dead."""

Events = asyncio.Queue[Event]


def about(endpoint: Endpoint, values: Mapping[str, Any], job: Job) -> About:
    """Return the facts that each reply of a job repeats."""
    size = f"{job.request.width}x{job.request.height}"
    return About(endpoint, job.output.background, job.output.format, values["quality"], size)


async def answer(request: Request, facts: About, job: Job, tokens: Tokens, events: Events, worker: Worker) -> Response:
    """Submit a job, and return its pictures or a stream of them. A client that leaves cancels it.

    Raises:
        ApiError: the queue is full, or the job failed.
        ClientDisconnect: the client left.
    """
    worker.submit(job)
    if job.progress:
        return _Stream(_stream(job, facts, tokens, events), partial(worker.cancel, job))
    leaving = asyncio.create_task(_left(request))
    drawing = asyncio.create_task(_finished(events))
    try:
        await asyncio.wait({leaving, drawing}, return_when=asyncio.FIRST_COMPLETED)
        if not drawing.done():
            raise ClientDisconnect
        pictures = drawing.result()
    finally:
        worker.cancel(job)
        leaving.cancel()
        drawing.cancel()
    data = [_picture(request, facts.output_format, picture) for picture in pictures]
    return await anyio.to_thread.run_sync(JsonReply, facts.reply(data, tokens))


async def _left(request: Request) -> None:
    """Wait until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _finished(events: Events) -> list[FinishedPicture]:
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


async def _stream(job: Job, facts: About, tokens: Tokens, events: Events) -> AsyncIterator[bytes]:
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
                yield facts.event("partial_image", b64_json=b64, partial_image_index=index)
            case FinishedPicture(_, seed, b64, _):
                yield facts.event("completed", b64_json=b64, seed=seed, usage=tokens.document(1))
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
