"""Drafters that ask a companion: answers are those without them, token by token, whatever is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pronghorn import rng
from pronghorn.compose import parse
from pronghorn.errors import MethodError
from pronghorn.methods.draft._companion import OWN, depths
from pronghorn.methods.draft._trees import KINDS
from pronghorn.methods.draft.rapid import Rapid
from pronghorn.methods.draft.self_skip import SelfSkip
from pronghorn.seq import Request
from pronghorn.slots import DraftRoom
from tests.conformance._rig import TableCompanion, check_draft, sequence
from tests.engines import engine, prompt, run_all

DRAFTERS = [
    "draft-model:model=self,stop=1",
    "draft-model:model=self:weight=int4,length=3",
    "draft-model:model=self,sample=true",
    *(f"draft-model:model=self,tree={kind},nodes=9" for kind in KINDS if kind != "chain"),
    "self-skip:layers=1",
    "self-skip:layers=0m+2a,sample=true",
    "self-skip:layers=odd",
    "s2d:exits=1+2,sure=0.2",
    "s2d:exits=1+3,model=self,sure=0.9,stop=1",
    "rapid:least=0,budget=24,chunk=6,query=8,first=4",
    "easyspec:block=2",
]
DEEP = {"num_hidden_layers": 4}
ASKS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "seed": 3},
    "penalties": {"use": ("repetition-penalty:penalty=1.3", "presence-penalty")},
    "sampled, shaped": {
        "temperature": 0.8,
        "use": ("top-k:k=20", "frequency-penalty", "min-p"),
    },
    "grammar": {"use": ('regex:pattern="([a-m]{2,5} [n-z]+, )+end"',)},
    "grammar, sampled": {"temperature": 0.8, "use": ('regex:pattern="([a-m]{2,5} [n-z]+, )+end"',)},
}


def asked(**options: Any) -> list[Request]:
    """Requests of several lengths."""
    return [
        Request(prompt(20 + 7 * n, n), max_tokens=24 + n, ignore_eos=n % 2 == 0, **options) for n in range(4)
    ]


@pytest.fixture(scope="module")
def plain() -> dict[str, list[list[int]]]:
    e = engine(["match", "batch"], "native", **DEEP)
    return {name: [list(s.new) for s in run_all(e, asked(**o))] for name, o in ASKS.items()}


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_answers_do_not_change(drafter: str, plain: dict[str, list[list[int]]]) -> None:
    e = engine([drafter, "match", "batch"], "native", **DEEP)
    accepted = 0
    for name, options in ASKS.items():
        seqs = run_all(e, asked(**options))
        assert [list(s.new) for s in seqs] == plain[name], name
        accepted += sum(s.counts.accepted for s in seqs)
    assert accepted > 0
    assert e.drafting.reserved == 0


@pytest.mark.parametrize(
    "drafter", ["draft-model:model=self,stop=1", "self-skip:layers=1", "s2d:exits=1+2,sure=0.2"]
)
def test_answers_do_not_change_on_the_oracle(drafter: str) -> None:
    want = [list(s.new) for s in run_all(engine(["match"], **DEEP), asked()[:2])]
    seqs = run_all(engine([drafter, "match"], **DEEP), asked()[:2])
    assert [list(s.new) for s in seqs] == want
    assert sum(s.counts.accepted for s in seqs) > 0


def test_answers_do_not_change_with_torch() -> None:
    pytest.importorskip("torch")
    (ask,) = [Request(prompt(12), max_tokens=6, ignore_eos=True)]
    (want,) = run_all(engine(["match"], "torch"), [ask])
    for drafter in ("draft-model:model=self,stop=1", "self-skip:layers=1a,sure=0"):
        (seq,) = run_all(engine([drafter, "match"], "torch"), [ask])
        assert list(seq.new) == list(want.new)
        assert seq.counts.drafted > 0


@pytest.mark.parametrize(
    "kv", ["kvfmt.int8", "streaming-llm:sinks=4,window=40,every=16,prompt_every=64", "quest:tokens=48"]
)
def test_borrowed_rows_may_be_packed_dropped_or_selected(kv: str) -> None:
    """A model that drafts for itself reads what the answering one has, whatever became of it."""
    ask = [Request(prompt(150, n), max_tokens=80, ignore_eos=True) for n in range(2)]
    want = [list(s.new) for s in run_all(engine([kv, "match"], "native", **DEEP), ask)]
    e = engine([kv, "self-skip:layers=2m,sure=0", "match"], "native", **DEEP)
    seqs = run_all(e, ask)
    assert [list(s.new) for s in seqs] == want
    assert sum(s.counts.accepted for s in seqs) > 0


def test_the_same_number_draws_the_same_token() -> None:
    """A draft from the target's own distribution stands at any temperature, if the draws agree."""
    right = {}
    for sample in (False, True):
        e = engine([f"draft-model:model=self,stop=1,sample={str(sample).lower()}", "match"], "native")
        seqs = run_all(e, asked(temperature=1.0))
        right[sample] = sum(s.counts.accepted for s in seqs) / sum(s.counts.drafted for s in seqs)
    assert right[False] == 1.0
    assert right[True] < 0.9


def test_sampled_drafts_say_what_they_were_drawn_from() -> None:
    truth = np.random.default_rng(0).standard_normal((32, 32))
    d = parse("draft-model:model=self,sample=true,stop=1,length=4")[1]
    s = sequence([1, 2, 3])
    s.request = Request(tuple(s.tokens), temperature=0.7)
    (draft,) = d.propose([s], [9], DraftRoom(models={"self": TableCompanion(truth)}))
    assert draft.q.shape == (4, 32)
    before = [3, *draft.tokens[:-1]]
    for i, last in enumerate(before):
        p = np.exp(truth[last].astype(np.float32).astype(np.float64) / 0.7)
        p /= p.sum()
        np.testing.assert_allclose(draft.q[i], p, atol=1e-6)
        at = np.searchsorted(np.cumsum(draft.q[i]), rng.uniform(0, 0, 3 + i, OWN), side="right")
        assert draft.tokens[i] == at
    # what is dropped for its score is not dropped for its token
    np.testing.assert_allclose(draft.score, (draft.q**2).sum(1), rtol=1e-5)


def test_chains_end_where_the_drafter_is_unsure() -> None:
    truth = np.zeros((32, 32))
    for t, sure in enumerate([9.0, 9.0, 9.0, 0.5, 9.0, 9.0]):
        truth[t, t + 1] = sure
    models = {"self": TableCompanion(truth)}
    (draft,) = parse("draft-model:model=self,length=6,stop=0.5")[1].propose(
        [sequence([0])], [9], DraftRoom(models=models)
    )
    assert draft.tokens.tolist() == [1, 2, 3, 4]  # the unsure token is still drafted, none after it
    (draft,) = parse("draft-model:model=self,length=6,stop=1")[1].propose(
        [sequence([0])], [9], DraftRoom(models=models)
    )
    assert draft.n == 6


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "chain"])
def test_trees_are_drawn_from_the_companion(kind: str) -> None:
    truth = np.random.default_rng(0).standard_normal((32, 32))
    d = parse(f"draft-model:model=self,tree={kind},nodes=12,length=3")[1]
    models = {"self": TableCompanion(truth)}
    for temperature in (0.0, 0.7):
        s = sequence([1, 2, 3])
        s.request = Request(tuple(s.tokens), temperature=temperature)
        (draft,) = d.propose([s], [9], DraftRoom(models=models))
        check_draft(draft, 3, 32)
        assert 6 <= draft.n <= 12
        assert kind == "best" or draft.depths().max() == 3
        assert len(draft.q) == (draft.n if temperature and kind != "best" else 0)
        if kind in ("rsd-c", "rsd-s", "sequoia") and temperature:
            last = [3 if p < 0 else int(draft.tokens[p]) for p in draft.parent]
            np.testing.assert_allclose(draft.q, softmax(truth.astype(np.float32)[last], 0.7), atol=1e-6)
        (short,) = d.propose([s], [1], DraftRoom(rows=5, models=models))
        assert short.n <= 5
        assert short.depths().max() == 1


def softmax(x: Any, temperature: float) -> Any:
    e = np.exp(np.asarray(x, np.float64) / temperature)
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("verifier", ["rejection", "siblings"])
def test_the_model_itself_is_never_refused(verifier: str) -> None:
    """p and q are the same, so that every token that was drawn stands."""
    tree = "sequoia,nodes=6" if verifier == "siblings" else "chain"
    e = engine([f"draft-model:model=self,sample=true,stop=1,tree={tree}", verifier, "batch"], "native")
    seqs = run_all(e, asked(temperature=0.9))
    assert all(s.counts.steps < s.n_new / 1.8 for s in seqs)
    if verifier == "rejection":
        # but for what comes after an end of text
        assert all(s.counts.accepted == s.counts.drafted for s in seqs if s.request.ignore_eos)


def test_rows_are_shared_out() -> None:
    assert depths([9, 9, 9], 5, DraftRoom(rows=100)) == [5, 5, 5]
    assert depths([9, 0, 9, 1], 5, DraftRoom(rows=7)) == [3, 0, 2, 1]
    assert depths([9, 9], 5, DraftRoom(rows=1)) == [1, 0]
    assert depths([9, 9], 5, DraftRoom(rows=0)) == [0, 0]


def test_the_threshold_follows_what_stands() -> None:
    d = SelfSkip(layers="1", sure=0.5, accept=0.8)
    t = d._threshold
    for _ in range(40):
        t.move(0.0, 0.8)
    high = t.sure
    assert high > 0.55
    for _ in range(200):
        t.move(1.0, 0.8)
    assert t.sure < high


def test_rapid_keeps_what_the_end_asks_for() -> None:
    filler = np.random.default_rng(0).integers(500, 900, 4000).tolist()
    fact = list(range(100, 120))
    text = [1, 2, 3, 4, *filler[:2000], *fact, *filler[2000:], *fact[:6]]
    kept = Rapid(budget=300, chunk=50, query=20, first=4, least=0)._retrieved(text)
    assert len(kept) <= 300
    assert kept[:4] == (1, 2, 3, 4)
    assert kept[-20:] == tuple(text[-20:])
    body = kept[:-20]
    assert set(fact) & set(body), "the piece with the fact is there"
    order = [text.index(t) for t in body if t in fact]
    assert order == sorted(order)


def test_rapid_leaves_short_prompts_alone() -> None:
    e = engine(["rapid:least=100", "match"], "native")
    seqs = run_all(e, asked())
    assert sum(s.counts.drafted for s in seqs) == 0


@pytest.mark.parametrize(
    "bad",
    ["draft-model:model=x,length=0", "draft-model:model=x,stop=2", "self-skip:layers=", "self-skip:accept=1",
     "s2d:exits=2+1", "s2d:exits=", "rapid:budget=10", "rapid:chunk=0", "easyspec:block=0", "draft-model"],
)  # fmt: skip
def test_ranges(bad: str) -> None:
    with pytest.raises(MethodError):
        parse(bad)


@pytest.mark.parametrize("bad", ["self-skip:layers=9", "s2d:exits=9", "self-skip:layers=0a+1a"])
def test_models_that_cannot_be_cut_so(bad: str) -> None:
    with pytest.raises(MethodError):
        engine([bad, "match"])
