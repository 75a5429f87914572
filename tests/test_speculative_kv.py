"""Recipe T-KV: after a hundred rounds of drafts, keys and values are stored as if there had been none.

The answering model's rows are those of plain decoding, a companion's those of a prefill of the same text, bit
for bit on the native runner. Planted faults, one in each, must be found.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pronghorn import engine as core
from pronghorn.beside import Beside
from pronghorn.engine import Engine
from pronghorn.methods.draft._trees import KINDS
from pronghorn.seq import Request, Seq
from tests.engines import engine, generate, prompt
from tests.small import specs

ROUNDS, EVERY = 100, 20
DEEP = {"num_hidden_layers": 4}
DRAFTERS = [
    *specs("draft"),
    *(f"draft-model:model=self,tree={kind},nodes=9" for kind in KINDS if kind != "chain"),
    "draft-model:model=self,stop=1,sample=true",
    "draft-model:model=self:weight=int4,length=3,stop=1",
    "draft-model:model=self:exit=1,stop=1",
    "draft-model:model=pronghorn-tiny-draft,stop=1",  # another vocabulary, whose tokens are fed in pieces
    "s2d:exits=1+3,sure=0.2",
    "token-recycling:adaptive=true",
    "auto:drafters=prompt-lookup+draft-model:model=self",
]
KV = ["kvfmt.int8", "snapkv:budget=24,window=8,kernel=3"]
SOME = ["prompt-lookup", "token-recycling", "draft-model:model=self,tree=best,nodes=9", "self-skip:layers=1a"]


@cache
def asks() -> list[Request]:
    """One greedy, which goes on with what its prompt repeats, and one sampled, whose drafts are often
    refused."""
    first, second = prompt(40), prompt(40, 1)
    again = generate(engine(["match"], "native", **DEEP), first, 160)
    return [
        Request((*first, *again), max_tokens=1500, ignore_eos=True),
        Request(second, max_tokens=1500, temperature=0.8, seed=1, ignore_eos=True),
    ]


def stored(store: Any, kv: Any, n_prompt: int) -> list[Any]:
    """All that is stored of a text."""
    view = store.view(kv, n_prompt)
    return [view.pos, view.valid, view.k, view.v]


def same(a: list[Any], b: list[Any]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def target_differs(e: Engine, seq: Seq, plain: Engine, alone: Seq) -> bool:
    """Whether rows are not those of plain decoding, which is taken as far."""
    while alone.n_new < seq.n_new:
        plain.step()
    assert alone.tokens == seq.tokens
    rows = (stored(x.store, s.kv, s.n_prompt) for x, s in ((e, seq), (plain, alone)))
    return not same(*rows)


def companions_differ(e: Engine, seq: Seq, fresh: Engine) -> list[str]:
    """Companions whose rows of a sequence are not those of a prefill."""
    out = []
    for name, model in e.drafting.models.items():
        if not isinstance(model, Beside):
            continue  # it reads the answering model's
        again: Any = fresh.drafting.models[name]
        for h in [h for key, h in model._held.items() if key[0] == seq.id]:
            model.sync([seq], [h.head])
            copy: Any = SimpleNamespace(
                id=seq.id, tokens=[*seq.tokens], n_prompt=seq.n_prompt, request=seq.request
            )
            while not any(again.sync([copy], [h.head])):
                pass
            (mirror,) = again._held.values()
            assert (mirror.n, mirror.rows) == (h.n, h.rows)
            if not same(*(stored(m.store, x.kv, x.n_prompt) for m, x in ((model, h), (again, mirror)))):
                out.append(name)
            again.drop(seq.id)
    return out


def differences(drafter: str, *kv: str, last: Callable[[], None] = lambda: None) -> list[str]:
    """What is stored otherwise than without drafts, after each `EVERY` rounds of `ROUNDS`. last: called
    before the last of them."""
    use = [drafter, *kv, "match", "batch"]
    e, fresh = engine(use, "native", **DEEP), engine(use, "native", **DEEP)
    seqs = [s for r in asks() for s in e.submit(r)]
    plain = [engine([*kv, "match"], "native", **DEEP) for _ in seqs]
    alone = [p.submit(r)[0] for p, r in zip(plain, asks(), strict=True)]
    out = []
    while not all(s.n_new for s in seqs):
        e.step()
    for n in range(1, ROUNDS + 1):
        if n == ROUNDS:
            last()
        e.step()
        for s, p, a in zip(seqs, plain, alone, strict=True):
            if n % EVERY == 0:
                out += ["target"] * target_differs(e, s, p, a) + companions_differ(e, s, fresh)
    assert sum(s.counts.drafted for s in seqs) > 0
    assert all(s.counts.steps > ROUNDS for s in seqs)
    for x in (e, fresh, *plain):
        x.close()
    return out


def name(drafter: str) -> str:
    """Alike in every process of a run, which a datastore's folder is not."""
    return re.sub(r"store=[^,]*/", "store=", drafter)


@pytest.mark.parametrize("drafter", DRAFTERS, ids=name)
def test_rows_are_those_without_drafts(drafter: str) -> None:
    assert differences(drafter) == []


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("drafter", SOME, ids=name)
def test_rows_that_change_form_or_go_are_those_without_drafts(drafter: str, kv: str) -> None:
    assert differences(drafter, kv) == []


def test_a_row_of_another_node_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last round the first row takes the place of all that stand: the tokens are still right."""
    real = core._Places.add

    def add(self: Any, store: Any, kv: Any, first: int, rows: list[int]) -> None:
        real(self, store, kv, first, rows[:1] * len(rows))

    def plant() -> None:
        monkeypatch.setattr(core._Places, "add", add)

    assert set(differences("draft-model:model=self,stop=1", last=plant)) == {"target"}


def test_a_row_of_what_did_not_stand_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A companion that takes what it drafted for what was answered, pending token included."""
    real = Beside._open

    def careless(self: Beside, seq: Seq, head: Any) -> Any:
        h = self._held.get((seq.id, head[1]))
        if h and (n := min(len(h.drafted), h.size - h.n)):
            h.n, h.rows, h.drafted = h.n + n, h.drafted[n - 1][1], []
        return real(self, seq, head)

    monkeypatch.setattr(Beside, "_open", careless)
    assert set(differences("draft-model:model=self,stop=1,sample=true")) == {"self"}
