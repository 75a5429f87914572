"""Which heads of a model retrieve: their attention to a text of random tokens that repeats (RazorAttention,
Tang et al., 2024, arXiv 2407.15891, section 3.2).

Of a token that was there before, a head's echo score is the weight that it gives to its earlier occurrences,
its induction score the weight it gives to the tokens that followed those; both are means over all tokens but
those of the first repetition. Random tokens have no meaning that a head could go by instead. What is looked
at is the model as it runs, by what policies look with: its own queries and stored keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.calibrate.looking import Looks, mark
from pronghorn.calibrate.table import Table
from pronghorn.errors import RequestError
from pronghorn.kv.look import BLOCK
from pronghorn.kv.view import KVView
from pronghorn.llm import LLM
from pronghorn.seq import Request
from pronghorn.types import KVPlan

SHORTEST = 16  # tokens that repeat, at least

Tick = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Watch(Looks):
    """A policy that keeps every row and adds up what the heads give to earlier occurrences.

    first: tokens before the text that repeats; unit: tokens until it does; echo, induction: (layer, query
    head) -> sums, once it has seen something; rows: queries in them."""

    first: int
    unit: int
    tick: Tick = lambda done, total: None
    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        q, pos = taps["q"], taps["q_pos"]
        echo, induction = (self.sums.setdefault(n, np.zeros(q.shape[:2])) for n in ("echo", "induction"))
        later = pos >= self.first + self.unit
        q, pos = q[:, :, later], pos[later]
        self.rows.append(len(pos))
        for layer in range(len(q)):
            for start in range(0, len(pos), BLOCK):
                at = pos[start : start + BLOCK]
                w = view.weights(layer, q[layer, :, start : start + BLOCK], at)
                before, i = at - self.unit, np.arange(len(at))
                while (there := before >= self.first).any():
                    echo[layer] += w[:, i[there], before[there]].sum(axis=1)
                    induction[layer] += w[:, i[there], before[there] + 1].sum(axis=1)
                    before = before - self.unit
        self.tick(view.length, view.n_prompt)
        return None

    def scores(self, name: str, n_kv: int) -> NDArray[np.float64]:
        """(layers, KV heads): the mean over queries, the largest of the query heads that share one."""
        mean = self.sums[name] / max(1, sum(self.rows))
        largest = mean.reshape(len(mean), n_kv, -1).max(axis=-1)
        return np.asarray(np.round(largest.clip(0, 1), 6), np.float64)


@dataclass(frozen=True)
class Text:
    """ids: what is run; first, unit: see `Watch`."""

    ids: tuple[int, ...]
    first: int
    unit: int


def text(llm: LLM, tokens: int, repeats: int, seed: int = 0) -> Text:
    """`tokens` of the vocabulary by lot, `repeats` times, behind the token that begins texts; shorter where
    the context is. Raises `RequestError`."""
    tokenizer, context = llm.tokenizer, llm.engine.bound.context
    begin = () if tokenizer.bos < 0 else (tokenizer.bos,)
    unit = min(tokens, (context - 1 - len(begin)) // repeats)
    if unit < SHORTEST:
        raise RequestError(
            f"a text of {max(unit, 0)} tokens {repeats} times shows nothing; {SHORTEST} or more are needed, "
            f"and this model takes {context} in all: give fewer repeats, or more tokens"
        )
    r = np.random.default_rng(seed)
    plain = np.array([i for i in range(tokenizer.n_vocab) if not tokenizer.is_special(i)], np.int64)
    drawn = r.permutation(plain)[:unit] if len(plain) >= unit else r.choice(plain, unit)
    return Text((*begin, *np.tile(drawn, repeats).tolist()), len(begin), unit)


def find(llm: LLM, name: str, shown: Text, tick: Tick = lambda done, total: None) -> Table:
    """The table of the model that `llm` runs, which must have been opened with `use=[watching()]`."""
    watch = Watch(shown.first, shown.unit, tick)
    ((seq,),) = llm.engine.run([Request(shown.ids, 1, ignore_eos=True, use=(watch,))])
    if not watch.rows:
        raise RequestError(f"the text was not looked at ({seq.error or seq.finish})")
    n_kv = llm.engine.store.n_kv
    echo, induction = (
        tuple(tuple(row) for row in watch.scores(name, n_kv).tolist()) for name in ("echo", "induction")
    )
    return Table(name, mark(llm), len(shown.ids), echo, induction)


def watching() -> Watch:
    """What an `LLM` is opened with to be looked at."""
    return Watch(0, 1 << 30)
