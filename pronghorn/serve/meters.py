"""What a server counts for Prometheus, beside what its engines do (`exposition.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

if TYPE_CHECKING:
    from pronghorn.serve.pool import Pool

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Meters:
    """Counters of one server. What the engines count is read when somebody asks."""

    def __init__(self, pool: Pool) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pronghorn_requests", "Requests answered.", ["endpoint", "status"], registry=self.registry
        )
        self.duration = Histogram(
            "pronghorn_request_seconds", "From a request to the end of its answer.", ["endpoint"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.registry.register(pool.engines())

    def text(self) -> bytes:
        """Everything in Prometheus' text form."""
        return generate_latest(self.registry)
