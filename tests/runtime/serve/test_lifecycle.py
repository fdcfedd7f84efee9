"""The life of requests: the queue, clients that leave, several models, and the end of the server."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.serve.api.limits import Limits
from qwen_image_engine.runtime.serve.models import Model, Models
from tests.support.numpy_engines import Journal, numpy_pipeline
from tests.support.served import SMALL, Gate, Served, pixels, served, until

PATH = "/v1/images/generations"


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as found:
        yield found


@pytest.fixture
def ask(clients: ThreadPoolExecutor) -> Callable[..., "Future[httpx2.Response]"]:
    """`ask(server, **fields)`: a request in a thread of its own."""

    def start(server: Served, **fields: Any) -> "Future[httpx2.Response]":
        def post() -> httpx2.Response:
            with server.client() as client:
                return client.post(PATH, json={**SMALL, **fields})

        return clients.submit(post)

    return start


@contextmanager
def left_behind(server: Served, **fields: Any) -> Iterator[socket.socket]:
    """A connection that has sent a request, and leaves at the end of the block."""
    body = httpx2.Request("POST", server.url, json={**SMALL, **fields}).content
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        yield connection


class TestQueue:
    def test_requests_beyond_it_are_refused(self, pipeline: QwenImage, gate: Gate, ask: Any) -> None:
        with served(pipeline, limits=Limits(queue=2)) as server:
            running = ask(server)
            until(lambda: gate.arrived == 1)
            waiting = [ask(server, seed=seed) for seed in (1, 2)]
            until(lambda: server.service.worker.waiting == 2)
            assert server.metric("queue_length") == 2
            refused = ask(server).result()
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "queue_full"
            until(lambda: server.metric("refusals_total", status="429") == 1)
            with server.client() as client:
                assert client.get("/health").status_code == client.get("/ready").status_code == 200
            gate.open()
            assert [item.result().status_code for item in (running, *waiting)] == [200] * 3

    def test_it_is_as_long_while_models_are_loaded(
        self, pipeline: QwenImage, ask: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loading, real = threading.Event(), QwenImage.preload
        monkeypatch.setattr(QwenImage, "preload", lambda self: (loading.wait(20), real(self)))
        with served(pipeline, limits=Limits(queue=1), wait=False) as server:
            with server.client() as client:
                assert client.get("/health").status_code == 200
                reply = client.get("/ready")
                assert (reply.status_code, reply.json()["error"]["code"]) == (503, "loading")
                until(lambda: len(server.log("request")) == 2)
                assert server.metric("refusals_total", status="503") == 0
            first = ask(server)
            until(lambda: server.service.worker.waiting == 1)
            assert ask(server).result().status_code == 429
            loading.set()
            assert first.result().status_code == 200

    def test_a_queue_of_none(self, pipeline: QwenImage, gate: Gate, ask: Any) -> None:
        with served(pipeline, limits=Limits(queue=0)) as server:
            first = ask(server)
            until(lambda: gate.arrived == 1)
            assert ask(server).result().status_code == 429
            gate.open()
            assert first.result().status_code == 200
            until(lambda: not server.service.worker.busy)
            assert ask(server).result().status_code == 200

    def test_no_picture_is_another_clients(self, server: Served, twin: QwenImage, ask: Any) -> None:
        """16 clients at once, each with seeds of its own: what comes back is what its seed draws."""
        expected = {
            seed: twin.generate("a red circle", seed=seed, width=64, height=96, steps=4)[0].rgba for seed in range(20)
        }
        replies = [(seed, ask(server, seed=seed)) for round_ in range(4) for seed in range(16)]
        for seed, reply in replies:
            if reply.result().status_code == 429:
                continue
            found = reply.result().json()
            assert found["seed"] == seed
            assert np.array_equal(pixels(found["data"][0]["b64_json"]), expected[seed])
        assert server.metric("pictures_total", model="toy") >= 16
        assert pipeline_timings(server) == 0

    def test_encoding_does_not_hold_up_the_next_picture(
        self, pipeline: QwenImage, ask: Any, monkeypatch: pytest.MonkeyPatch, journal: Journal
    ) -> None:
        from qwen_image_engine.runtime.serve import worker

        release, real = threading.Event(), worker.encode

        def slow(*arguments: Any) -> bytes:
            release.wait(20)
            return real(*arguments)

        monkeypatch.setattr(worker, "encode", slow)
        with served(pipeline) as server:
            reply = ask(server, n=3)
            until(lambda: journal.counts()["run vae_decoder_mid"] == 3)
            assert not reply.done()
            release.set()
            assert len(reply.result().json()["data"]) == 3


def pipeline_timings(server: Served) -> int:
    return sum(len(model.pipeline.timings.entries) for model in server.service.models.all)


class TestLeaving:
    def test_the_picture_in_work_stops_within_a_step(
        self, pipeline: QwenImage, gate: Gate, journal: Journal, ask: Any
    ) -> None:
        with served(pipeline) as server:
            with left_behind(server, num_inference_steps=50, n=4):
                gate.open(1)
                until(lambda: gate.arrived == 2)
            until(lambda: server.log("request"))
            gate.open()
            until(lambda: server.log("cancelled"))
            assert journal.counts()["run step"] <= 3
            assert server.log("request")[-1]["status"] == 499
            assert server.metric("refusals_total", status="499") == 0
            assert server.metric("cancelled_total") == 1
            assert ask(server).result().status_code == 200

    def test_a_stream_stops_too(self, pipeline: QwenImage, gate: Gate, journal: Journal) -> None:
        with served(pipeline) as server:
            with left_behind(server, num_inference_steps=50, stream=True, partial_images=3) as connection:
                gate.open(1)
                until(lambda: gate.arrived == 2)
                assert b"text/event-stream" in connection.recv(4096)
            until(lambda: server.log("request"))
            gate.open()
            until(lambda: server.log("cancelled"))
            assert journal.counts()["run step"] <= 3

    def test_a_request_that_waits_is_dropped(self, pipeline: QwenImage, gate: Gate, ask: Any) -> None:
        with served(pipeline) as server:
            first = ask(server)
            until(lambda: gate.arrived == 1)
            with left_behind(server, seed=5):
                until(lambda: server.service.worker.waiting == 1)
            until(lambda: server.service.worker.waiting == 0)
            gate.open()
            assert first.result().status_code == 200
            until(lambda: not server.service.worker.busy)
            assert server.metric("pictures_total", model="toy") == 1

    def test_clients_that_leave_at_random(self, server: Served, ask: Any) -> None:
        rng = np.random.default_rng(0)
        threads = threading.active_count()
        for number in range(50):
            with left_behind(server, seed=number, stream=bool(number % 2), num_inference_steps=20) as connection:
                connection.settimeout(float(rng.uniform(0.0001, 0.02)))
                with suppress(TimeoutError):
                    connection.recv(100_000)
        until(lambda: not server.service.worker.busy)
        until(lambda: len(server.log("request")) == 50)
        assert ask(server).result().status_code == 200
        assert server.metric("failures_total") == 0
        assert server.log("fault") == server.log("library") == []
        assert threading.active_count() <= threads + 25  # the event loop keeps idle workers a while; a leak has 50


class TestModels:
    def test_by_name_within_a_budget(self, checkpoint: Path, ask: Any) -> None:
        journals = {name: Journal() for name in ("one", "two", "three")}
        pipelines = {name: numpy_pipeline(checkpoint, journal) for name, journal in journals.items()}
        with served(pipelines, budget=2) as server:
            assert [model.loaded for model in server.service.models.all] == [True, True, False]
            replies = [ask(server, model=name).result() for name in ("one", "three")]
            assert [reply.status_code for reply in replies] == [200, 200]
            assert [model.loaded for model in server.service.models.all] == [True, False, True]
            assert server.log("freed")[0]["model"] == "two"
            assert journals["two"].counts()["close step"] == 1
            first = ask(server, model="two", seed=3).result()
            assert [model.loaded for model in server.service.models.all] == [False, True, True]
            assert first.json()["data"] == ask(server, model="three", seed=3).result().json()["data"]

    @pytest.mark.parametrize(
        ("names", "sizes", "budget", "words"),
        [([], [], None, "no model"), (["a", "a"], [1, 1], None, "NAME=BUNDLE"), (["a"], [10], 5, "--memory-budget")],
    )
    def test_refused(
        self, pipeline: QwenImage, names: list[str], sizes: list[int], budget: int | None, words: str
    ) -> None:
        models = [Model(name, pipeline, size) for name, size in zip(names, sizes, strict=True)]
        with pytest.raises(UsageError, match=words):
            Models(models, budget)

    def test_a_model_that_cannot_be_loaded_ends_the_server(
        self, pipeline: QwenImage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(self: QwenImage) -> None:
            raise QwenImageError("no memory for it")

        monkeypatch.setattr(QwenImage, "preload", fail)
        with served(pipeline) as server:
            until(lambda: server.error)
        assert str(server.error) == "no memory for it"


class TestTheEnd:
    def test_the_work_that_was_taken_is_finished(self, pipeline: QwenImage, gate: Gate, ask: Any) -> None:
        with served(pipeline, grace_s=20) as server:
            taken = [ask(server, seed=seed) for seed in (1, 2)]
            until(lambda: gate.arrived == 1 and server.service.worker.waiting == 1)
            server.server.stop()
            refused = ask(server).result()
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            assert int(refused.headers["retry-after"]) >= 1
            until(lambda: server.metric("refusals_total", status="503") == 1)
            with server.client() as client:
                assert client.get("/ready").status_code == 503
                assert client.get("/health").status_code == 200
            gate.open()
            assert [item.result().status_code for item in taken] == [200, 200]
        assert server.log("stopped")

    def test_the_rest_is_cancelled_after_the_grace(
        self, pipeline: QwenImage, gate: Gate, journal: Journal, ask: Any
    ) -> None:
        with served(pipeline, grace_s=0.2) as server:
            taken = [ask(server, seed=seed) for seed in (1, 2)]
            until(lambda: gate.arrived == 1 and server.service.worker.waiting == 1)
            server.server.stop()
            until(lambda: server.log("closing"))
            gate.open()
            assert [item.result().status_code for item in taken] == [503, 503]
        assert journal.counts()["run step"] <= 1

    def test_files_of_urls_are_removed(self, pipeline: QwenImage, ask: Any) -> None:
        with served(pipeline) as server:
            assert ask(server, response_format="url").result().status_code == 200
            folder = server.service.links._folder
            assert folder is not None
            assert len(list(folder.iterdir())) == 1
        assert not folder.exists()


def test_the_metrics_are_counters_without_their_times(server: Served, ask: Any) -> None:
    """A client of Prometheus writes for each counter when it was made, as a gauge that nobody asked for."""
    assert ask(server).result().status_code == 200
    assert ask(server, n=0).result().status_code == 400
    until(lambda: server.metric("refusals_total", status="400") == 1)
    text = server.service.metrics.text().decode()
    assert "_created" not in text
    for name in ("pictures_total", "refusals_total", "stage_seconds_total", "request_seconds_count", "queue_length"):
        assert f"\nqwen_image_{name}" in text


def test_prompts_are_logged_if_asked(checkpoint: Path, ask: Any) -> None:
    for prompts in (False, True):
        with served(numpy_pipeline(checkpoint, Journal()), prompts=prompts) as server:
            reply = ask(server, prompt="a secret")
            found = reply.result()
            until(lambda: server.log("request"))
            (line,) = server.log("picture")
            assert line["id"] == found.headers["x-request-id"] == server.log("request")[0]["id"]
            assert line.get("prompt") == ("a secret" if prompts else None)
            assert ("a secret" in server.lines.getvalue()) == prompts
