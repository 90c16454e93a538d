"""What the server tells of itself, in the form that Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lenext.serving.engine import Engine

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Requests, latency, pictures, batches and queues; one registry a server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter("lenext_requests", "Requests answered", ["endpoint", "status"], registry=registry)
        self._seconds = Histogram(
            "lenext_request_seconds", "From a request's headers to its answer", ["endpoint"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._pictures = Counter("lenext_pictures", "Pictures sent", ["model", "outcome"], registry=registry)
        self._batch = Histogram(
            "lenext_batch_size", "Pictures computed at once", ["model"], buckets=SIZES, registry=registry
        )
        self._compute = Counter("lenext_compute_seconds", "Spent in computing", ["model"], registry=registry)
        self._queue = Gauge("lenext_queue", "Pictures accepted and not yet answered", ["model"], registry=registry)

    def watch(self, engine: Engine) -> None:
        """Count the batches of an engine and the pictures in its queue."""
        batch, compute = self._batch.labels(engine.name), self._compute.labels(engine.name)

        def on_batch(size: int, seconds: float) -> None:
            batch.observe(size)
            compute.inc(seconds)

        engine.on_batch = on_batch
        self._queue.labels(engine.name).set_function(lambda: engine.waiting)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def pictures(self, model: str, answered: int, unreadable: int) -> None:
        self._pictures.labels(model, "answered").inc(answered)
        self._pictures.labels(model, "unreadable").inc(unreadable)

    def text(self) -> bytes:
        return generate_latest(self._registry)
