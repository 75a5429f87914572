"""Receipts: how each answer came about, kept for the last so many requests."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from pronghorn.compose import Composition, describe, name_of
from pronghorn.seq import Seq


class Receipts:
    """The last `keep` receipts by id. Any thread may read."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._held: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def put(self, receipt: dict[str, Any]) -> None:
        with self._lock:
            self._held[receipt["id"]] = receipt
            while len(self._held) > self._keep:
                self._held.popitem(last=False)

    def get(self, id_: str) -> dict[str, Any] | None:
        """None for one that was never there or has given way to newer ones."""
        with self._lock:
            return self._held.get(id_)


def account(seqs: Sequence[Seq], methods: Composition, full_bytes: Sequence[int]) -> dict[str, Any]:
    """What the sequences of one request did; full_bytes: what each would have held on the plain path."""
    leader = seqs[0]
    totals = [s.counts for s in seqs]
    drafters: dict[str, dict[str, int]] = {}
    for who, (drafted, accepted) in ((w, n) for c in totals for w, n in c.drafters.items()):
        had = drafters.setdefault(who, {"drafted": 0, "accepted": 0})
        had["drafted"] += drafted
        had["accepted"] += accepted
    new, steps = sum(s.n_new for s in seqs), sum(c.steps for c in totals)
    return {
        "prompt_tokens": leader.n_prompt,
        "new_tokens": new,
        "steps": steps,
        "accepted_length": new / steps if steps else 0.0,
        "drafters": drafters,
        "draft_rows": sum(c.draft_rows for c in totals),
        "forced_tokens": sum(c.forced for c in totals),
        "reused_tokens": leader.counts.reused,
        "prompt_rows": sum(c.prompt_rows for c in totals),
        "recomputed_rows": sum(c.recomputed for c in totals),
        "preempted": sum(c.preempted for c in totals),
        "swapped": sum(c.swapped for c in totals),
        "branches": [
            {
                "new_tokens": s.n_new,
                "finish": s.finish,
                "error": s.error,
                "kv_bytes": s.kv_bytes,
                "kv_full": full,
            }
            for s, full in zip(seqs, full_bytes, strict=True)
        ],
        "methods": [describe(m) for _, m in methods.each() if name_of(m)],
        "guarantee": methods.guarantee.value,
    }
