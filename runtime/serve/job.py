"""The job of a request: prepared pictures that wait for the worker, and the events that it sends back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from qwen_image_engine.runtime.request import Request
from qwen_image_engine.runtime.serve.api.errors import ApiError
from qwen_image_engine.runtime.serve.encoding import Output
from qwen_image_engine.runtime.serve.links import Links
from qwen_image_engine.runtime.serve.models import Model


@dataclass(frozen=True)
class Progress:
    """The event that a step was taken: index of the picture, number of steps taken, number of all steps."""

    picture: int
    step: int
    steps: int


@dataclass(frozen=True)
class PartialPicture:
    """The event that a partial picture was encoded: indices from 0, and the file in Base64."""

    picture: int
    index: int
    b64: str


@dataclass(frozen=True)
class FinishedPicture:
    """The event that a picture was encoded.

    Attributes:
        picture: index of the picture in the request.
        seed: seed of the picture.
        b64: the file in Base64; None if it is kept under a token.
        token: token of the file in `Links`; None if it is in `b64`.
    """

    picture: int
    seed: int
    b64: str | None
    token: str | None


@dataclass(frozen=True)
class Ended:
    """The last event of a job, with the error that ended it; None if every picture was sent."""

    error: ApiError | None = None


Event = Progress | PartialPicture | FinishedPicture | Ended


@dataclass(eq=False)
class Job:
    """The pictures of one HTTP request.

    Attributes:
        id: id of the HTTP request, for the log.
        model: model that draws.
        request: prepared request of the first picture. Its cancellation token is the job's.
        seeds: seed of each picture.
        output: form of the files.
        deliver: function that takes each event; the worker's threads call it.
        partial_images: partial pictures of each picture.
        progress: whether each step is an event.
        links: place of the files for `response_format: url`; None to send them in Base64.
        ended: whether the last event was sent.
    """

    id: str
    model: Model
    request: Request
    seeds: tuple[int, ...]
    output: Output
    deliver: Callable[[Event], None]
    partial_images: int = 0
    progress: bool = False
    links: Links | None = None
    ended: bool = field(default=False, init=False)

    def picture(self, index: int) -> Request:
        """Return the request of one picture, with the job's cancellation token."""
        if index == 0:
            return self.request
        return replace(self.request.with_seed(self.seeds[index]), cancellation=self.request.cancellation)

    def cancel(self) -> None:
        """Cancel the pictures that are not finished. The picture in work ends within a step. Any thread may call it."""
        self.request.cancel()

    def end(self, error: ApiError | None = None) -> None:
        """Send the last event, unless it was sent already."""
        if not self.ended:
            self.ended = True
            self.deliver(Ended(error))


def partial_steps(steps: int, count: int) -> tuple[int, ...]:
    """Return the indices of the steps after which a partial picture is sent.

    They are evenly spaced, and before the last step if there is room. There are `count`, or as many as there are steps
    if that is less.
    """
    if steps <= count:
        return tuple(range(steps))
    return tuple(-(-(number * steps) // (count + 1)) - 1 for number in range(1, count + 1))
