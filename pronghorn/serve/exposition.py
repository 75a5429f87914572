"""What the models of a pool count, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from pronghorn.serve.async_llm import AsyncLLM
    from pronghorn.serve.metrics import Histogram

COUNTERS = {
    "prompt_tokens": "Prompt tokens run.",
    "new_tokens": "Tokens of answers.",
    "reused_tokens": "Prompt tokens taken from stored states instead.",
    "forced": "Tokens that a constraint left no choice about.",
    "preempted": "Times a sequence gave up its memory to others.",
    "steps": "Steps of the engine.",
    "kv_read_bytes": "Bytes of KV that attention read.",
    "failed_steps": "Steps that ended in an error.",
}
DRAFTS = {"drafted": "Tokens drafted.", "accepted": "Drafted tokens that stood."}  # by drafter
HISTOGRAMS = {
    "queue_time": ("queue_seconds", "From the queue to a request's first step."),
    "first_token": ("first_token_seconds", "From a request to its first token."),
    "between_tokens": ("between_tokens_seconds", "Between two tokens of an answer."),
    "request": ("answer_seconds", "From a request to the end of its answers."),
    "step_time": ("step_seconds", "Length of a step."),
    "step_rows": ("step_rows", "Rows of a step."),
    "accepted_length": ("accepted_length", "Mean new tokens per step of a sequence."),
}
GAUGES: dict[str, tuple[str, Callable[[AsyncLLM], float]]] = {
    "running": ("Sequences that run.", lambda a: len(a.llm.engine.running)),
    "waiting": ("Requests that wait for their turn.", lambda a: a.queue_length),
    "kv_held_bytes": ("KV held, stored prefixes included.", lambda a: a.llm.engine.store.held),
    "kv_limit_bytes": (
        "KV that may be held.",
        lambda a: a.llm.engine.kv_rows * a.llm.engine.store.row_bytes,
    ),
    "healthy": ("1 while the engine serves.", lambda a: float(a.healthy)),
}


class Engines(Collector):
    """models: name -> model, asked each time somebody reads."""

    def __init__(self, models: Callable[[], Mapping[str, AsyncLLM]]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        models = self._models()
        for name, (text, read) in GAUGES.items():
            gauge = GaugeMetricFamily(f"pronghorn_{name}", text, labels=["model"])
            for model, llm in models.items():
                gauge.add_metric([model], read(llm))
            yield gauge
        beside = GaugeMetricFamily(
            "pronghorn_companion_kv_held_bytes", "KV that a companion model holds.",
            labels=["model", "companion"],
        )  # fmt: skip
        for model, llm in models.items():
            for companion, kept in llm.llm.engine.drafting.models.items():
                beside.add_metric([model, companion], kept.held)
        yield beside
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(f"pronghorn_{name}", text, labels=["model"])
            for model, llm in models.items():
                counter.add_metric([model], getattr(llm.stats, name))
            yield counter
        ended = CounterMetricFamily(
            "pronghorn_finished", "Requests by how they ended.", labels=["model", "how"]
        )
        for model, llm in models.items():
            for how, n in llm.stats.finished.items():
                ended.add_metric([model, how], n)
        yield ended
        disk = CounterMetricFamily(
            "pronghorn_disk_records", "Stored prefixes on disk, by what happened.", labels=["model", "what"]
        )
        for model, llm in models.items():
            for what, n in llm.llm.methods.reuse.disk_counts().items():
                disk.add_metric([model, what], n)
        yield disk
        for i, (name, text) in enumerate(DRAFTS.items()):
            counter = CounterMetricFamily(f"pronghorn_{name}", text, labels=["model", "drafter"])
            for model, llm in models.items():
                for drafter, counts in list(llm.stats.drafters.items()):
                    counter.add_metric([model, drafter], counts[i])
            yield counter
        for name, (shown, text) in HISTOGRAMS.items():
            family = HistogramMetricFamily(f"pronghorn_{shown}", text, labels=["model"])
            for model, llm in models.items():
                held: Histogram = getattr(llm.stats, name)
                family.add_metric([model], *_buckets(held))
            yield family


def _buckets(h: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Cumulative counts by upper bound, and the sum."""
    out, total = [], 0
    for bound, n in zip((*h.bounds, float("inf")), tuple(h.counts), strict=True):
        total += n
        out.append(("+Inf" if bound == float("inf") else repr(bound), float(total)))
    return out, h.sum
