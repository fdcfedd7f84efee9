"""A server on a loopback port in this process, on toy pipelines, and what its clients send."""

from __future__ import annotations

import base64
import io
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray
from openai import DefaultHttpxClient, OpenAI
from PIL import Image

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.serve.api.limits import Limits
from qwen_image_engine.runtime.serve.app import Service
from qwen_image_engine.runtime.serve.guard import Access
from qwen_image_engine.runtime.serve.log import Log
from qwen_image_engine.runtime.serve.models import Model, Models
from qwen_image_engine.runtime.serve.server import Server, address_of, listen

OpenAI(api_key="any").platform_headers()  # asks for facts of the system in a process, and keeps the answer

_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # a client would read the system's certificates, which takes longer
SMALL: dict[str, Any] = {"prompt": "a red circle", "size": "64x96", "num_inference_steps": 4}


@dataclass
class Served:
    """A running server.

    Attributes:
        url: its address.
        service: its parts.
        server: the server, to stop it.
        lines: its log.
        error: the error that ended it.
    """

    url: str
    service: Service
    server: Server
    lines: io.StringIO = field(repr=False)
    error: QwenImageError | None = None

    def client(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60, verify=_NO_TLS, **options)

    def openai(self, key: str = "any", **options: Any) -> OpenAI:
        http = DefaultHttpxClient(verify=_NO_TLS)
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, http_client=http, **{"max_retries": 0, **options})

    def log(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.lines.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value, 0 where it was not counted yet."""
        text = self.service.metrics.text().decode()
        inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
        start = f"qwen_image_{name}{{{inner}}} " if inner else f"qwen_image_{name} "
        return sum(float(line.removeprefix(start)) for line in text.splitlines() if line.startswith(start))


@contextmanager
def served(
    pipelines: Mapping[str, QwenImage] | QwenImage,
    *,
    limits: Limits | None = None,
    access: Access | None = None,
    budget: int | None = None,
    prompts: bool = False,
    grace_s: float = 5.0,
    wait: bool = True,
) -> Iterator[Served]:
    """Serve pipelines by name, or one as "toy"; each counts as one byte of the budget. `wait` until they are loaded."""
    named = {"toy": pipelines} if isinstance(pipelines, QwenImage) else pipelines
    models = Models([Model(name, pipeline, 1) for name, pipeline in named.items()], budget)
    lines = io.StringIO()
    service = Service.create(models, Log(lines, prompts), limits, access)
    listener = listen("127.0.0.1", 0)
    server = Server(service, listener, grace_s)
    found = Served(address_of(listener), service, server, lines)

    def run() -> None:
        try:
            server.run()
        except QwenImageError as error:
            found.error = error

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(service.worker.ready.is_set if wait else lambda: True)
        yield found
    finally:
        server.stop()
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def until(true: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


def pixels(picture: str | bytes) -> NDArray[np.uint8]:
    """Pixels of a file, or of one in Base64."""
    data = base64.b64decode(picture) if isinstance(picture, str) else picture
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class Gate:
    """A gate before each step of a toy pipeline, which a test opens step by step.

    Attributes:
        arrived: number of steps that have come to the gate.
    """

    def __init__(self, pipeline: QwenImage) -> None:
        self.arrived = 0
        self._open = threading.Semaphore(0)
        components = pipeline._components
        run = components.run

        def gated(component: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
            if component == "step":
                self.arrived += 1
                self._open.acquire()
            return run(component, inputs)

        components.run = gated  # type: ignore[method-assign]

    def open(self, steps: int = 10_000) -> None:
        self._open.release(steps)
