"""Pronghorn behind `serve`: the engine as users have it, without drafts and without stored prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pronghorn.bench.attribute import parts_of
from pronghorn.bench.cost import model_of
from pronghorn.llm import LLM
from pronghorn.seq import Request
from pronghorn.types import FOREVER, Rows

if TYPE_CHECKING:
    from pronghorn.kv.store import SeqKV
    from pronghorn.seq import Seq

PLAIN = ("match", "fcfs")
MORE = 1 << 16  # tokens that a sequence may write: it is cancelled long before


def tokens(n: int, n_vocab: int, seed: int) -> list[int]:
    """Token ids of no meaning, another text for every seed."""
    return [int(t) for t in np.random.default_rng(seed).integers(0, n_vocab - 8, n)]


class Driver:
    def prepare(self, model: str, precision: str, cache: str) -> None:
        """Nothing: weights are packed when they are loaded."""

    def __init__(self) -> None:
        self._hook: Callable[[], None] | None = None

    def load(
        self, model: str, use: Sequence[str], precision: str, threads: int, cache: str
    ) -> dict[str, Any]:
        """`precision` and `cache` are for peers: what Pronghorn runs in is among `use`."""
        self.llm = LLM(model, list(use), threads=threads, defaults=PLAIN)
        self.engine = self.llm.engine
        return {"cost": asdict(model_of(self.engine)), "methods": self.llm.explain()}

    def prefill(self, n: int) -> float:
        ids = tuple(tokens(n, self.engine.bound.n_vocab, n))
        start = self._clock()
        (seq,) = self.engine.submit(Request(ids, 1, ignore_eos=True))
        while not seq.finish:
            self.engine.step()
        return time.perf_counter() - start

    def decode(self, batch: int, context: int, tokens: int) -> float:
        seqs = self._sequences(batch, context)
        try:
            while not all(s.n_new for s in seqs):  # one step, unless the prompts have to run
                self.engine.step()
            start = self._clock()
            for _ in range(tokens):
                self.engine.step()
            return (time.perf_counter() - start) / tokens
        finally:
            for s in seqs:
                self.engine.cancel(s)

    def rows(self, n: int, context: int, repeat: int) -> float:
        kv, rows = self._chain(n, context)
        try:
            self.engine.runner.run(rows, [kv], False)
            start = self._clock()
            for _ in range(repeat):
                self.engine.runner.run(rows, [kv], False)
            return (time.perf_counter() - start) / repeat
        finally:
            kv.free()

    def profile(self, of: str, what: dict[str, int], steps: int) -> dict[str, Any]:
        """Where a run of the cell spends its time, for each of `steps` steps that it measures."""
        runner: Any = self.engine.runner
        getattr(self, of)(**what)
        self._hook = runner.exe.start_profile
        seconds = getattr(self, of)(**what)
        threads = runner.exe.stop_profile()
        return {
            "seconds": seconds,
            "parts": [asdict(p) for p in parts_of(self.engine, threads, seconds, steps)],
        }

    # ------------------------------------------------------------------ inside

    def _clock(self) -> float:
        """The time; what is measured, and profiled if it shall be, begins now."""
        hook, self._hook = self._hook, None
        if hook is not None:
            hook()
        return time.perf_counter()

    def _sequences(self, batch: int, context: int) -> list[Seq]:
        """Sequences whose context is filled but for the last token of the prompt."""
        seqs = []
        for i in range(batch):
            ids = tokens(context + 1, self.engine.bound.n_vocab, i)
            more = min(MORE, self.engine.kv_rows // batch - len(ids))
            seqs += self.engine.submit(Request(tuple(ids), more, ignore_eos=True))
        barrier = int(self.engine.methods.kv.barrier(context + 1, 0))
        if not self.engine.memory.seals and barrier >= FOREVER:  # else rows are packed or dropped on the way
            for seq in seqs:
                self._fill(seq.kv, context)
        return seqs

    def _fill(self, kv: SeqKV, n: int) -> None:
        """Store n rows, all of them copies of one that was computed: what is in them takes no time."""
        one = np.zeros(1, np.int32)
        want = np.ones(1, np.int32)
        self.engine.runner.run(Rows(one, one, want, one, one - 1, want), [self.engine.store.new()], False)
        addr, block, slot = self.engine.store.reserve(kv, n)
        self.engine.runner.commit(np.zeros(n, np.int32), addr, block, slot)
        self.engine.store.extend(kv, range(n))

    def _chain(self, n: int, context: int) -> tuple[SeqKV, Rows]:
        """A sequence of `context` stored rows and a step of n more."""
        kv = self.engine.store.new()
        self._fill(kv, context)
        order = np.arange(n, dtype=np.int32)
        ids = np.asarray(tokens(n, self.engine.bound.n_vocab, n), np.int32)
        rows = Rows(ids, context + order, context + order + 1, 0 * order, order - 1, 0 * order + 1)
        return kv, rows
