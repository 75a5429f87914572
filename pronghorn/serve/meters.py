"""What a server counts for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from pronghorn.serve.pool import Pool

SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Meters:
    """Counters of one server. What the engines count is read when somebody asks."""

    def __init__(self, pool: Pool) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.requests = Counter(
            "pronghorn_requests", "Requests answered.", ["endpoint", "status"], **own
        )  # fmt: skip
        self.duration = Histogram(
            "pronghorn_request_seconds", "From a request to the end of its answer.", ["endpoint"],
            buckets=SLOW, **own,
        )  # fmt: skip
        self.registry.register(_Engines(pool))

    def text(self) -> bytes:
        """Everything in Prometheus' text form."""
        return generate_latest(self.registry)


class _Engines:
    """The models' own numbers: `Pool.metrics()` -> model -> name -> number. Names that end in "_total" only
    grow."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        families: dict[str, Any] = {}
        for model, numbers in self.pool.metrics().items():
            for name, value in numbers.items():
                kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                family = families.setdefault(
                    name, kind(f"pronghorn_{name}", name.replace("_", " "), labels=["model"])
                )
                family.add_metric([model], value)
        yield from families.values()
