"""The live view: what runs, what waits, what is held, and the last two minutes.

Written and photographed by the engine's thread; readers get the last photograph, so that nobody who looks
holds up a step.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pronghorn.compose import describe, name_of

if TYPE_CHECKING:
    from pronghorn.engine import Engine, StepInfo
    from pronghorn.serve.run import Run

HISTORY = 120  # seconds of it
RATE = 3  # seconds that rates are a mean of
OFTEN = 0.25  # seconds between two photographs, at least
ASKED = 2.0  # seconds after somebody's question for which photographs are made
SHOWN = 256  # waiting requests in a photograph, at most


@dataclasses.dataclass
class _Second:
    tokens: int = 0
    prompt_tokens: int = 0
    steps: int = 0
    running: int = 0


class Live:
    """model: the name that people know it by. Everything but `asked` and `last` is the engine's thread's."""

    def __init__(self, engine: Engine, model: str) -> None:
        self.engine, self.model = engine, model
        self.asked = -ASKED  # time.monotonic() of the last question
        self.last: dict[str, Any] = {}
        self.totals = {"requests": 0, "tokens": 0, "prompt_tokens": 0, "steps": 0}
        self._born = time.monotonic()
        self.taken = 0.0
        self._nodes: list[dict[str, Any]] = []
        self._tree_due = 0.0
        self._now = _Second()
        self._second = int(self._born)
        self._history: deque[dict[str, Any]] = deque(maxlen=HISTORY)

    def step(self, now: float, last: StepInfo, tokens: int, prompt_tokens: int) -> None:
        """Count one step."""
        if int(now) != self._second:
            self._roll(now)
        s = self._now
        s.tokens += tokens
        s.prompt_tokens += prompt_tokens
        s.steps += 1
        s.running = max(s.running, last.sequences)
        totals = self.totals
        totals["tokens"] += tokens
        totals["prompt_tokens"] += prompt_tokens
        totals["steps"] += 1

    def due(self, now: float) -> bool:
        """Whether a new photograph is wanted and the last one is old enough."""
        return now - self.taken >= OFTEN and now - self.asked < ASKED

    def _roll(self, now: float) -> None:
        """Close the seconds that are over."""
        second, wall = int(now), time.time() - now
        kv = self.engine.store.held
        for t in range(max(self._second, second - HISTORY), second):
            s, self._now = self._now, _Second()
            self._history.append(
                {
                    "t": round(wall + t),
                    "tokens": s.tokens,
                    "prompt_tokens": s.prompt_tokens,
                    "steps": s.steps,
                    "running": s.running,
                    "kv": kv,
                }
            )
        self._second = second

    def photograph(self, runs: Iterable[Run], preparing: int) -> None:
        """Renew `last`."""
        now = time.monotonic()
        self.taken = now
        self._roll(now)
        engine, last = self.engine, self.engine.last
        owner = {s.id: run for run in runs for s in run.seqs}
        recent = list(self._history)[-RATE:]
        span = max(len(recent), 1)
        methods = engine.methods
        row = engine.store.row_bytes
        self.last = {
            "model": self.model,
            "methods": [describe(m) for _, m in methods.each() if name_of(m)],
            "guarantee": methods.guarantee.value,
            "uptime": now - self._born,
            "kv": {
                "held": engine.store.held,
                "limit": int(engine.kv_rows * row),
                "reserved": int(sum(s.need for s in engine.running) * row),
                "shared_saved": self._shared(),
                "companions": {name: c.held for name, c in engine.drafting.models.items()},
            },
            "running": [
                {
                    "id": owner[s.id].id if s.id in owner else "",
                    "branch": s.branch,
                    "user": s.request.user,
                    "phase": "answer" if s.n_new else "prompt",
                    "prompt": s.n_prompt,
                    "done": min(s.kv.length, s.n_prompt),
                    "new": s.n_new,
                    "max_new": s.request.max_tokens,
                    "reused": s.counts.reused,
                    "priority": s.request.priority,
                    "age": now - s.arrival,
                }
                for s in engine.running
            ],
            "waiting": [
                {
                    "id": owner[s.id].id if s.id in owner else "",
                    "prompt": s.n_prompt,
                    "user": s.request.user,
                    "age": now - s.arrival,
                }
                for s in engine.waiting[:SHOWN]
            ],
            "queue": len(engine.waiting) + preparing,
            "cache": {"nodes": self._tree(), "disk": dict(methods.reuse.disk_counts())},
            "rates": {
                key: sum(s[key] for s in recent) / span for key in ("tokens", "prompt_tokens", "steps")
            },
            "step": {"rows": last.rows, "sequences": last.sequences, "ms": last.seconds * 1e3},
            "totals": dict(self.totals),
            "history": list(self._history),
        }

    def _tree(self) -> list[dict[str, Any]]:
        """What is stored, looked at less often the longer that takes: a twentieth of the time at most."""
        begun = time.monotonic()
        if begun >= self._tree_due:
            nodes = [dataclasses.asdict(n) for n in self.engine.methods.reuse.tree()]
            for node in nodes:
                del node["tokens"]  # what people asked is nobody else's business
            self._nodes = nodes
            self._tree_due = begun + 20 * (time.monotonic() - begun)
        return self._nodes

    def _shared(self) -> int:
        """Bytes that running sequences would hold on top if none shared its pages."""
        store = self.engine.store
        kvs = [s.kv for s in self.engine.running]
        if not kvs:
            return 0
        opens = np.concatenate([kv.open for kv in kvs])
        sealed = np.concatenate([s.blocks for kv in kvs for s in kv.sealed])
        return int(
            (len(opens) - len(np.unique(opens))) * store.open_layout.block
            + (len(sealed) - len(np.unique(sealed))) * store.sealed_layout.block
        )
