"""Drafts of one step: asked for, cut to the room that the step has, counted, and answered.

A constraint's forced tokens are a draft that no drafter can better; they take its place. What a step may
last is the scheduler's word (`StepPlan.seconds`), and drafts get what the known tokens leave of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pronghorn.compose import name_of
from pronghorn.cost import StepCost
from pronghorn.datastore import Datastore
from pronghorn.errors import RequestError
from pronghorn.run.base import Runner
from pronghorn.seq import Seq, Work
from pronghorn.slots import Drafter, DraftRoom
from pronghorn.types import Accept, Draft

if TYPE_CHECKING:
    from pronghorn.companion import Companion

FORCED = "forced"  # who drafted what the constraint forces


class Drafting:
    """clip: drafts end at barriers. models, stores: see `DraftRoom`."""

    def __init__(
        self, runner: Runner, cost: StepCost, clip: bool, models: Mapping[str, Companion],
        stores: Mapping[str, Datastore],
    ) -> None:  # fmt: skip
        self.runner, self.cost, self.clip, self.models, self.stores = runner, cost, clip, models, stores
        # of the last step: seconds for drafting and for learning from it, no part of what its rows cost; and
        # KV rows that the drafts' rows read
        self.seconds, self.read = 0.0, 0
        self._told: list[tuple[Drafter, list[Work]]] = []  # who wants to know what came of it, and for whom

    def forget(self, seq: Seq) -> None:
        """Free what companions hold of a sequence that ends or waits again."""
        for model in self.models.values():
            model.drop(seq.id)

    @property
    def reserved(self) -> int:
        """Bytes that the companions' KV has taken from the system."""
        return sum(model.reserved for model in self.models.values())

    def close(self) -> None:
        for model in self.models.values():
            model.close()

    def draft(self, works: Sequence[Work], seconds: float, most: int, read: int) -> None:
        """Give each of `works` its draft, as far as a step of `seconds` and `most` rows has room. read: KV
        rows that the step reads without drafts."""
        start = time.perf_counter()
        self._told = []
        self._draft(works, seconds, most, read)
        self.read = sum(w.draft.n * (w.seq.kv.length + w.take) for w in works if w.draft.n)
        self.seconds = time.perf_counter() - start

    def _draft(self, works: Sequence[Work], seconds: float, most: int, read: int) -> None:
        able, depth = [], []
        for w in sorted(works, key=lambda w: w.rank):
            seq = w.seq
            if not w.last or not seq.request.new_rows or seq.branches > 1:
                continue
            left = seq.request.max_tokens - seq.n_new - 1
            if self.clip:
                left = min(left, w.barrier - seq.kv.length - w.take)
            able.append(w)
            depth.append(max(left, 0))
        if not able:
            return
        room = self._room(sum(w.take for w in works), read, seconds, most)
        for drafter, at in _by_drafter(able):
            drafts = drafter.propose([able[i].seq for i in at], [depth[i] for i in at], room)
            if not drafts:
                continue
            self._told.append((drafter, [able[i] for i in at]))
            for i, draft in zip(at, drafts, strict=True):
                if draft.n:
                    able[i].draft = draft if draft.by else draft._replace(by=name_of(drafter))
        left = room.rows
        for w, k in zip(able, depth, strict=True):
            forced = _forced(w.seq)[:k]
            if forced:
                w.draft, w.forced = Draft.chain(forced)._replace(by=FORCED), True
            if w.draft.n:
                w.draft = w.draft.clip(k).head(left)
                left -= w.draft.n
            if w.draft.n:
                count(w, max(w.draft.levels()), 0)

    def _room(self, base: int, read: int, seconds: float, most: int) -> DraftRoom:
        rows = most - base
        if seconds < math.inf:
            rows = min(rows, self.cost.rows_within(seconds, base, read, read // max(1, base)))
        return DraftRoom(max(0, rows), base, read, self.cost, self.stores, self.models)

    def observe(self, works: Sequence[Work], accepts: Sequence[Accept], logits: NDArray[Any]) -> None:
        """Tell the drafters what became of their drafts."""
        if not self._told:
            return
        start = time.perf_counter()
        came = {id(w): a for w, a in zip(works, accepts, strict=True) if a.bonus >= 0}
        for drafter, asked in self._told:
            mine = [w for w in asked if id(w) in came]
            taps = _Each(self.runner, mine, logits)
            drafter.observe([w.seq for w in mine], [w.draft for w in mine], [came[id(w)] for w in mine], taps)
        self.seconds += time.perf_counter() - start


class _Each(Sequence[dict[str, NDArray[Any]]]):
    """What drafters may ask of sequences' rows, by sequence. Most ask nothing."""

    def __init__(self, runner: Runner, works: Sequence[Work], logits: NDArray[Any]) -> None:
        self._runner, self._works, self._logits = runner, works, logits

    def __len__(self) -> int:
        return len(self._works)

    def __getitem__(self, i: Any) -> Any:
        w = self._works[i]
        return _Taps(self._runner, self._logits[w.logit : w.logit + 1 + w.draft.n])


class _Taps(dict[str, NDArray[Any]]):
    """Made when it is asked for. logits (rows, n_vocab)."""

    def __init__(self, runner: Runner, logits: NDArray[Any]) -> None:
        super().__init__()
        self._runner, self._logits = runner, logits

    def __missing__(self, name: str) -> NDArray[Any]:
        if not name.startswith("top"):
            raise KeyError(name)
        self[name] = self._runner.top(self._logits, int(name.removeprefix("top")))
        return self[name]


def count(w: Work, drafted: int, accepted: int) -> None:
    """Book tokens of a sequence's draft: how deep it went, and how far it was right."""
    c = w.seq.counts
    c.drafted += drafted
    c.accepted += accepted
    had = c.drafters.get(w.draft.by, (0, 0))
    c.drafters[w.draft.by] = had[0] + drafted, had[1] + accepted
    if w.forced:
        c.forced += drafted


def _forced(seq: Seq) -> list[int]:
    try:
        return seq.constraint.forced()
    except RequestError:
        return []  # the mask, asked next, tells why and ends this request alone


def _by_drafter(works: Sequence[Work]) -> list[tuple[Drafter, list[int]]]:
    """Drafters, and the works of the sequences that they draft for."""
    first = works[0].seq.methods.draft if works else None
    if first and all(w.seq.methods.draft is first for w in works):
        return [(first, list(range(len(works))))]
    out: dict[int, tuple[Drafter, list[int]]] = {}
    for i, w in enumerate(works):
        drafter = w.seq.methods.draft
        out.setdefault(id(drafter), (drafter, []))[1].append(i)
    return list(out.values())
