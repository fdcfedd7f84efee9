"""The counters of a server, in Prometheus's form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.runtime.system.memory_use import highest_resident_bytes
from qwen_image_engine.runtime.timing import Timings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class _Registry(CollectorRegistry):
    """A registry without the time at which each counter was created, which the text form has as a gauge of its own."""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class Metrics:
    """The counters of one server. Threads may share them.

    Attributes:
        pictures: pictures that were drawn, by model.
        refusals: requests that were refused, by status.
        failures: requests that ended with an error of the server.
        cancelled: requests that were cancelled.
        requests: seconds of requests for pictures, from their arrival to the last byte.
    """

    def __init__(self) -> None:
        self._registry = _Registry()
        self.pictures = self._counter("pictures", "pictures that were drawn", "model")
        self.refusals = self._counter("refusals", "requests that were refused", "status")
        self.failures = self._counter("failures", "requests that ended with an error of the server")
        self.cancelled = self._counter("cancelled", "requests that were cancelled")
        self._seconds = self._counter("stage_seconds", "seconds of each stage", "stage")
        self.requests = Histogram(
            "qwen_image_request_seconds",
            "seconds of requests for pictures",
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self.gauge("peak_memory_bytes", "peak resident memory of the process", lambda: highest_resident_bytes() or 0)

    def gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Add a value that is asked for when the metrics are read."""
        Gauge(f"qwen_image_{name}", meaning, registry=self._registry).set_function(value)

    def add_timings(self, timings: Timings) -> dict[str, float]:
        """Add and clear the timings of a pipeline. Return the seconds of each stage."""
        found: dict[str, float] = {}
        for entry in timings.entries:
            stage: str = COMPONENTS[entry.component].stage if entry.kind == "run" else entry.kind
            found[stage] = found.get(stage, 0.0) + entry.seconds
        timings.clear()
        for stage, seconds in found.items():
            self._seconds.labels(stage).inc(seconds)
        return found

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a stage."""
        began = perf_counter()
        try:
            yield
        finally:
            self._seconds.labels(name).inc(perf_counter() - began)

    def drawn(self) -> int:
        """Return the number of all pictures."""
        samples = [sample for metric in self.pictures.collect() for sample in metric.samples]
        return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))

    def text(self) -> bytes:
        """Return all counters in Prometheus's text form."""
        return generate_latest(self._registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"qwen_image_{name}", meaning, labels, registry=self._registry)
