"""What is measured of functions, in the format of Prometheus."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest

from sidecar.functions.answer import Answer

# Seconds: a sandbox takes about ten milliseconds, a call a minute at most.
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Measures:
    """The measures of one application."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ("language", "version")
        self._calls = Counter("sidecar_function_calls", "Calls that were answered.", (*labels, "status"), registry=self._registry)
        self._workers = Counter("sidecar_function_workers", "Workers begun.", (*labels, "status"), registry=self._registry)
        self._refused = Counter("sidecar_function_refused", "Calls that were not run.", ("code",), registry=self._registry)
        self._took = Histogram(
            "sidecar_function_seconds", "How long answers took.", labels, buckets=_BUCKETS, registry=self._registry
        )

    def answered(self, answer: Answer, seconds: float) -> None:
        """Count an answer, and its workers."""
        self._calls.labels(answer.language, answer.version, answer.won.status).inc()
        for each in answer.workers:
            self._workers.labels(answer.language, answer.version, each.status).inc()
        self._took.labels(answer.language, answer.version).observe(seconds)

    def refused(self, code: int) -> None:
        """Count a call that was not run."""
        self._refused.labels(str(code)).inc()

    def text(self) -> bytes:
        """Return all as text."""
        return generate_latest(self._registry)
