"""KVzip: scores held against whole matrices of a second run, and a second run that leaves nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pronghorn.compose import Facts, check, compose
from pronghorn.errors import MethodError
from pronghorn.llm import LLM, Answer
from pronghorn.methods.kv.adakv import AdaKv
from pronghorn.methods.kv.kvzip import KVzip
from pronghorn.nulls import EXACT
from pronghorn.seq import Request
from recipes.lookup.tasks import ID, JUDGED, STOP, task
from tests.conformance._rig import Small, small
from tests.conformance.test_kvscores import IDS, N_PROMPT, digits
from tests.engines import engine, prompt

LOOKUP = Path(__file__).parents[1] / "models" / "lookup"
GROUP = 2  # query heads of a KV head in the small model


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("chunk", [200, 40])
def test_kvzip_keeps_what_it_takes_to_say_the_text_again(share: bool, chunk: int) -> None:
    ids, lead, most = IDS[:N_PROMPT], 5, np.zeros((3, 2, N_PROMPT))
    for first in range(0, N_PROMPT, chunk):
        part = ids[max(0, first - lead) : first + chunk]
        dense = Small(small())
        dense.feed(ids, N_PROMPT)
        q = dense.step(part, N_PROMPT).taps["q"]
        k = dense.store.view(dense.kv, N_PROMPT).k
        for layer, head, i in np.ndindex(3, 4, len(part)):
            x = k[layer, head // GROUP, : N_PROMPT + i + 1] @ q[layer, i, head] / np.sqrt(8)
            w = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
            best_so_far = most[layer, head // GROUP]
            np.maximum(best_so_far, w[:N_PROMPT], out=best_so_far)
    score = np.vectorize(digits)(most)
    score[..., :3] = np.inf
    run = Small(small(), KVzip(24, share, sinks=3, chunk=chunk, lead=lead))
    run.feed(ids, N_PROMPT, 10)
    heads = range(6)
    if share:
        flat = sorted(((-x, i) for i, x in enumerate(score.reshape(-1))))[: 24 * 6]
        want = [sorted(i % N_PROMPT for _, i in flat if i // N_PROMPT == h) for h in heads]
        assert len({len(rows) for rows in want}) > 1, "heads differ"
    else:
        want = [sorted(np.argsort(-x, kind="stable")[:24]) for x in score.reshape(6, -1)]
    ((length, plan),) = run.plans
    assert length == N_PROMPT
    assert [plan.keep[g].tolist() for g in heads] == want


@pytest.mark.parametrize("backend", ["ref64", "native"])
def test_kvzip_forgets_what_it_ran_again(backend: str) -> None:
    """With a budget for all, tokens and bytes are those of the plain path; with a small one not."""
    p = prompt(90, 5, repeat=False)
    seen = []
    for use in ([], ["kvzip:budget=1000,chunk=40"], ["kvzip:budget=24,chunk=40"]):
        e = engine(["match", *use], backend)
        (seq,) = e.submit(Request(p, 30, ignore_eos=True))
        while seq.kv.length < 90:
            e.step()
        if use:
            assert seq.kv.next_pos == 90
            assert all((s.pos < 90).all() for s in seq.kv.sealed)
            kept = sum(s.n for s in seq.kv.sealed)
            assert kept == len(seq.kv.sealed) * (90 if "1000" in use[0] else 24)
        held = e.store.held
        while not seq.finish:
            e.step()
        seen.append((list(seq.new), held))
        e.close()
        assert e.store.held == 0
    assert seen[0][0] == seen[1][0] != seen[2][0]
    assert seen[2][1] < 0.6 * seen[1][1]


def test_kvzip_starts_from_stored_rows() -> None:
    """A prompt may begin with another's rows as they were before it acted."""
    p, q = prompt(90, 5, repeat=False), prompt(30, 6, repeat=False)
    found = []
    for use in ([], ["prefix"]):
        e = engine(["match", "kvzip:budget=24,chunk=40", *use])
        seqs = [s for ids in (p, p + q) for ((s,),) in [e.run([Request(ids, 20, ignore_eos=True)])]]
        found.append([list(s.new) for s in seqs])
        assert (seqs[1].counts.reused > 60) == bool(use)
        e.close()
    assert found[0] == found[1]


def test_kvzip_is_refused_where_positions_end_with_the_context() -> None:
    (reason,) = check(compose(["kvzip"]), Facts(2, 64, True, False))
    assert "behind the prompt" in reason
    assert not check(compose(["kvzip"]), Facts(2, 64, False, True))


def test_another_policy_may_set_its_budgets() -> None:
    """Layers have budgets of their own; their heads share those."""
    run = Small(small(), AdaKv("kvzip:budget=24"))
    run.feed(IDS[:N_PROMPT], N_PROMPT)
    assert sum(s.n for s in run.kv.sealed) == 6 * 24


@pytest.mark.parametrize("bad", [{"budget": 0}, {"sinks": -1}, {"chunk": 0}, {"chunk": 4096}, {"lead": -1}])
def test_ranges(bad: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        KVzip(**bad)


# ------------------------------------------------------------------- on a model that looks things up


class Turn:
    """A walk through an answer and a question that is put once the answer has ended."""

    def __init__(self, follow: Sequence[int], said: Sequence[int] = ()) -> None:
        self.follow, self.said = follow, list(said)

    def forced(self) -> list[int]:
        if STOP not in self.said:
            return []
        return list(self.follow[len(self.said) - self.said.index(STOP) - 1 :])

    def mask(self, out: Any) -> None:
        forced = self.forced()
        out[:] = not forced
        out[forced[:1]] = True

    def advance(self, ids: Sequence[int]) -> int:
        for n, token in enumerate(ids):
            if self.forced()[:1] not in ([], [token]):
                return n
            self.said.append(token)
        return len(ids)

    def rollback(self, n: int) -> None:
        del self.said[len(self.said) - n :]

    def fork(self) -> Turn:
        return Turn(self.follow, self.said)

    def done(self) -> bool:
        return False


@dataclass(frozen=True)
class Talk:
    """A constraint: each request has the next second question."""

    turns: list[Turn] = field(default_factory=list)
    slot = "constrain"
    traits = EXACT

    def open(self, tokenizer: Any) -> Turn:
        return self.turns.pop(0)


def answered(policy: str) -> tuple[int, int]:
    """Of 20 look-ups among 48 pairs in 512 tokens, those answered, and those where another one was that came
    when rows had been dropped."""
    tasks, talk, found = [task("kv", i, 496, JUDGED["kv"]) for i in range(20)], Talk(), [0, 0]
    model = LLM(LOOKUP, use=[talk, policy], threads=1, defaults=("match", "fcfs"))
    for t in tasks:
        (first, one), (second, two), *_ = t.questions
        talk.turns.append(Turn([ID[w] for w in second.split()]))
        said = model.generate(f"{t.text} {first}", max_tokens=8, ignore_eos=True)
        assert isinstance(said, Answer)
        found[0] += said.text.strip().startswith(f"{one} ;")
        found[1] += said.text.strip() == f"{one} ; {second} {two} ;"
    model.close()
    return found[0], found[1]


def test_a_second_question_finds_its_answer() -> None:
    """At three rows of ten. SnapKV has kept what the first question asked for, lots nothing in particular."""
    assert min(answered("kvzip:budget=150")) >= 19
    first, second = answered("snapkv:budget=150,window=8")
    assert first >= 19 and second <= 12
    assert answered("random:budget=150,recent=8")[0] <= 12
