"""The worker: a thread that draws one picture at a time from a bounded queue, and a thread that encodes the others."""

from __future__ import annotations

import threading
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import Cancelled
from qwen_image_engine.runtime.images.picture import Picture
from qwen_image_engine.runtime.sampling.step import Step
from qwen_image_engine.runtime.serve.api.errors import ApiError, drawing_error
from qwen_image_engine.runtime.serve.encoding import encode
from qwen_image_engine.runtime.serve.job import FinishedPicture, Job, PartialPicture, Progress, partial_steps
from qwen_image_engine.runtime.serve.log import Log
from qwen_image_engine.runtime.serve.metrics import Metrics
from qwen_image_engine.runtime.serve.models import Models
from qwen_image_engine.runtime.system.text import plural

_ENCODED_BEHIND = 4
"""Pictures that may wait to be encoded. Then drawing waits, so that pictures do not pile up in memory."""
_LONGEST_RETRY_S = 600
_GUESSED_S = 5.0


class Worker:
    """The one place of a server that runs pipelines.

    Jobs are drawn in the order of their arrival. Encoding a picture overlaps with drawing the next one.
    """

    def __init__(self, models: Models, queue: int, metrics: Metrics, log: Log) -> None:
        """Create a worker that does not run yet.

        Args:
            models: the models.
            queue: most jobs that wait, besides the one in work.
            metrics: counters of the server.
            log: log of the server.
        """
        self._models = models
        self._limit = queue
        self._metrics = metrics
        self._log = log
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._current: Job | None = None
        self._closed = False
        self._draining = False
        self._job_s = _GUESSED_S
        self._encoder = ThreadPoolExecutor(1, "encoding")
        self._room = threading.Semaphore(_ENCODED_BEHIND)
        self._thread = threading.Thread(target=self._run, name="drawing", daemon=True)
        self.ready = threading.Event()
        self.failure: Exception | None = None

    def start(self) -> None:
        """Start the thread, which first loads the models."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of jobs that wait."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a job waits or is in work."""
        with self._changed:
            return bool(self._waiting) or self._current is not None

    @property
    def draining(self) -> bool:
        """Whether no more jobs are taken."""
        return self._draining

    def check_room(self) -> None:
        """Raise if a job would be refused now, so that no body is read for nothing.

        Raises:
            ApiError: the queue is full, or the server is stopping.
        """
        if self._draining:
            headers = {"Retry-After": "10", "Connection": "close"}
            raise ApiError(503, "the server is stopping; ask again later", code="draining", headers=headers)
        idle = self.ready.is_set() and self._current is None and not self._waiting
        if len(self._waiting) >= self._limit and not idle:
            wait = min(_LONGEST_RETRY_S, max(1, ceil(self._job_s)))
            waiting = plural(self._limit, "request is", "requests are")
            text = f"{waiting} waiting, which is the most; ask again in {wait} s"
            raise ApiError(429, text, code="queue_full", headers={"Retry-After": str(wait)})

    def submit(self, job: Job) -> None:
        """Add a job to the queue.

        Raises:
            ApiError: the queue is full, or the server is stopping.
        """
        with self._changed:
            self.check_room()
            self._waiting.append(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Drop a job that waits, or stop the one in work within a step."""
        job.cancel()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._metrics.cancelled.inc()
                self._log.write("cancelled", id=job.id)
                self._changed.notify_all()
            else:
                return
        job.end(drawing_error(Cancelled()))

    def drain(self) -> None:
        """Take no more jobs."""
        self._draining = True

    def cancel_all(self) -> None:
        """Take no more jobs, and cancel all that there are."""
        self.drain()
        with self._changed:
            jobs = [*self._waiting, *([self._current] if self._current else [])]
        for job in jobs:
            self.cancel(job)

    def close(self) -> None:
        """Cancel everything, and wait for the threads. The picture in work ends within a step."""
        self.cancel_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._encoder.shutdown()

    def _run(self) -> None:
        try:
            self._models.preload()
        except Exception as error:
            self.failure = error
        self.ready.set()
        while (job := self._next()) is not None:
            began = perf_counter()
            self._draw(job)
            self._job_s = 0.7 * self._job_s + 0.3 * (perf_counter() - began)
            del job  # its pictures and latents, while this thread waits

    def _next(self) -> Job | None:
        """Wait for a job, and return it; None after `close`."""
        with self._changed:
            self._current = None
            self._changed.notify_all()
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._waiting:
                return None
            self._current = self._waiting.popleft()
            return self._current

    def _draw(self, job: Job) -> None:
        try:
            for freed in self._models.load(job.model):
                self._log.write("freed", id=job.id, model=freed)
            for index in range(len(job.seeds)):
                self._draw_picture(job, index)
        except Exception as error:
            self._encode(job, partial(self._fail, job, error))  # behind the pictures that were drawn
        else:
            self._encode(job, job.end)

    def _draw_picture(self, job: Job, index: int) -> None:
        request = job.picture(index)
        shown = partial_steps(request.inputs.steps, job.partial_images)
        pipeline = job.model.pipeline
        began = perf_counter()

        def on_step(step: Step) -> None:
            if job.progress:
                job.deliver(Progress(index, step.index + 1, step.steps))
            if step.index in shown:
                (rgba,) = step.preview(1)
                self._encode(job, partial(self._send_partial, job, index, shown.index(step.index), rgba))

        try:
            (picture,) = pipeline.generate(request, on_step=on_step)
        finally:
            stages = self._metrics.add_timings(pipeline.timings)
        seconds = perf_counter() - began
        self._metrics.pictures.labels(job.model.name).inc()
        self._log.write(
            "picture",
            id=job.id,
            model=job.model.name,
            seed=picture.parameters.seed,
            size=f"{request.width}x{request.height}",
            steps=request.inputs.steps,
            seconds=round(seconds, 4),
            stages={stage: round(value, 4) for stage, value in stages.items()},
            **self._log.texts(prompt=request.prompt, negative_prompt=request.negative_prompt),
        )
        self._encode(job, partial(self._send_picture, job, index, picture))

    def _encode(self, job: Job, work: Callable[[], None]) -> None:
        """Let the other thread do `work`, in order."""
        self._room.acquire()

        def carry_out() -> None:
            try:
                work()
            except Exception as error:
                job.cancel()
                self._fail(job, error)
            finally:
                self._room.release()

        self._encoder.submit(carry_out)

    def _send_partial(self, job: Job, picture: int, index: int, rgba: NDArray[np.uint8]) -> None:
        with self._metrics.stage("encode_file"):
            text = b64encode(encode(rgba, job.output)).decode("ascii")
        job.deliver(PartialPicture(picture, index, text))

    def _send_picture(self, job: Job, index: int, picture: Picture) -> None:
        token, text = None, None
        with self._metrics.stage("encode_file"):
            data = encode(picture.rgba, job.output, picture.parameters)
            if job.links is not None:
                token = job.links.add(data, job.output.format)
            else:
                text = b64encode(data).decode("ascii")
        job.deliver(FinishedPicture(index, job.seeds[index], text, token))

    def _fail(self, job: Job, error: Exception) -> None:
        """End a job with an error, and count and log it. The error's frames, which hold arrays, are not kept."""
        if job.ended:  # by an encoding that failed, which has cancelled the rest
            return
        if isinstance(error, Cancelled):
            self._metrics.cancelled.inc()
            self._log.write("cancelled", id=job.id)
        else:
            found = drawing_error(error)
            if found.status >= 500:
                self._metrics.failures.inc()
                self._log.failure("failed", error, id=job.id)
        job.end(drawing_error(error).with_traceback(None))
