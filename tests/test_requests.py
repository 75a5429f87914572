"""What a request may ask for itself, and sequences that give up their rows or wait for those of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pronghorn import memory as core
from pronghorn.compose import Composition, Facts, compose, override
from pronghorn.engine import Engine
from pronghorn.errors import MethodError, RequestError
from pronghorn.methods.sched.fcfs import Fcfs
from pronghorn.nulls import EXACT
from pronghorn.seq import Request, Seq
from pronghorn.slots import Room, StepPlan
from pronghorn.types import Origin
from tests.engines import engine, generate, prompt, run_all

FACTS = Facts(2, 4096, False, False)
BACKENDS = ("native", "ref64")


# ------------------------------------------------------------------------------- methods of one request


def test_a_request_brings_its_own_methods():
    base = compose(["match", "fcfs", "prompt-lookup", "temperature"])
    made = override(base, ["token-recycling", "top-k:k=5", "regex:pattern=[0-9]+"], FACTS)
    assert made.sched is base.sched
    assert type(made.draft).__name__ == "TokenRecycling"
    assert [type(m).__name__ for m in made.shape] == ["Temperature", "TopK"]
    assert base.draft is not made.draft
    again = override(base, ["token-recycling"], FACTS)
    assert again.draft is made.draft, "what a drafter learns is kept from request to request"


@pytest.mark.parametrize(
    ("use", "word"),
    [
        (["fcfs"], "whole engine"),
        (["weight.int8"], "whole engine"),
        (["prefix"], "whole engine"),
        (["kvfmt.int8"], "whole engine"),
        (["snapkv"], "start with"),
        (["prompt-lookup", "token-recycling"], "choose one"),
        (["top-k:k=5", "top-k:k=6"], "twice"),
        (["top-k:kk=5"], "did you mean"),
        (["no-such-thing"], "no method"),
    ],
)
def test_what_a_request_may_not_choose_is_refused_with_a_reason(use: list[str], word: str):
    with pytest.raises(MethodError, match=word):
        override(compose(["match"]), use, FACTS)


def test_a_request_reads_no_file_of_the_machine(tmp_path: Any):
    secret = tmp_path / "secret"
    secret.write_text("[0-9]+")
    made = override(Composition(), [f"regex:pattern=@{secret}"], FACTS)
    assert made.constrain.pattern == f"@{secret}"
    assert compose([f"regex:pattern=@{secret}"]).constrain.pattern == "[0-9]+", "the command line does"


@pytest.mark.parametrize("backend", BACKENDS)
def test_own_methods_act_on_their_request_alone(backend: str):
    p, q = prompt(40, 1), prompt(40, 2)
    plain = generate(engine(["match"], backend), p, 30)
    shaped = generate(engine(["match", "repetition-penalty:penalty=3"], backend), q, 30)
    kept = generate(engine(["match", "streaming-llm:sinks=2,window=16"], backend), q, 30)
    assert shaped != generate(engine(["match"], backend), q, 30)
    e = engine(["match", "prefix"], backend)
    seqs = run_all(e, [
        Request(p, 30, ignore_eos=True),
        Request(q, 30, ignore_eos=True, use=("repetition-penalty:penalty=3",)),
        Request(q, 30, ignore_eos=True, use=("streaming-llm:sinks=2,window=16",)),
        Request(p, 30, ignore_eos=True, use=("prompt-lookup",)),
    ])  # fmt: skip
    assert [list(s.new) for s in seqs] == [plain, shaped, kept, plain]
    # and again, now that states of all of them are stored
    dropping = Request(q, 30, ignore_eos=True, use=("streaming-llm:sinks=2,window=16",))
    seqs = run_all(e, [dropping, Request(p, 30, ignore_eos=True)])
    assert [list(s.new) for s in seqs] == [kept, plain]
    e.close()
    assert e.store.held == 0


# ------------------------------------------------------------------------------- several answers, numbers


def test_several_answers_to_one_prompt():
    p = prompt(33, 4)
    e = engine(["match"])
    (group,) = e.run([Request(p, 12, 0.9, seed=7, n=4, ignore_eos=True)])
    assert [s.branch for s in group] == [0, 1, 2, 3]
    assert len({tuple(s.new) for s in group}) == 4
    assert list(group[0].new) == generate(engine(["match"]), p, 12, temperature=0.9, seed=7)
    assert sum(s.counts.prompt_rows for s in group) == 33
    assert e.store.held == 0
    with pytest.raises(RequestError, match="n is 0"):
        e.submit(Request(p, 5, n=0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_alternatives_are_the_largest_logits(backend: str):
    e = engine(["match"], backend)
    (s,) = run_all(e, [Request(prompt(20), 6, logprobs=True, top=5, score=True, ignore_eos=True)])
    assert len(s.logprobs) == len(s.tops) == 6
    assert len(s.prompt_logprobs) == len(s.prompt_tops) == 19
    for token, p, top in zip(s.new, s.logprobs, s.tops, strict=True):
        assert top[0] == (token, p)  # greedy
        assert [x for _, x in top] == sorted((x for _, x in top), reverse=True)
        assert len({i for i, _ in top}) == 5
    (t,) = run_all(engine(["match"], backend), [Request(tuple(s.tokens), 0, score=True, top=1)])
    assert np.allclose(t.prompt_logprobs, [*s.prompt_logprobs, *s.logprobs], atol=1e-5)
    assert [x[0][0] for x in t.prompt_tops[19:]] == list(s.new)[:]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_embedding_does_not_depend_on_chunks_or_company(backend: str):
    p, q = prompt(70, 1), prompt(30, 2)

    def pooled(use: list[Any], requests: list[Request]) -> Any:
        e = engine(["match", *use], backend)
        (s, *_) = run_all(e, requests)
        assert s.n_pooled == 70
        assert s.finish == "stop"
        assert e.store.held == 0
        return s.pooled

    whole = pooled([Fcfs(512, 512)], [Request(p, 0, embed=True)])
    parts = pooled([Fcfs(16, 7)], [Request(p, 0, embed=True), Request(q, 9), Request(q, 0, embed=True)])
    assert np.allclose(whole, parts, rtol=0, atol=0 if backend == "native" else 1e-9)
    assert np.abs(whole).max() > 0


# ------------------------------------------------------------------------------- giving up rows


@dataclass(frozen=True)
class Harsh:
    """Takes rows away from a running sequence at every `every`th step, in turns."""

    every: int = 3
    inner: Any = field(default_factory=lambda: Fcfs(64, 16))
    slot = "sched"
    traits = EXACT
    at: list[int] = field(default_factory=lambda: [0])

    def plan(self, waiting: Sequence[Seq], running: Sequence[Seq], room: Room) -> StepPlan:
        self.at[0] += 1
        plan = self.inner.plan(waiting, running, room)
        if self.at[0] % self.every or len(running) < 2:
            return plan
        victim = running[self.at[0] // self.every % len(running)]
        rows = tuple(r for r in plan.rows if r[0] is not victim)
        return StepPlan(plan.admit, rows, (victim,)) if rows else plan


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "use",
    [
        [],
        ["prefix"],
        ["prefix", "kvfmt.int8"],
        ["snapkv:budget=24,window=8", "prefix"],
        ["streaming-llm:sinks=2,window=16"],
        ["token-recycling", "prefix"],
    ],
    ids=lambda use: "+".join(use) or "plain",
)
def test_giving_up_rows_changes_no_token(use: list[str], backend: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(core, "PROMPT_GRID", 32)
    monkeypatch.setattr(core, "DECODE_GRID", 16)
    asked = [Request(prompt(30 + 25 * i, i), 40, 0.7 * (i % 2), seed=i, ignore_eos=True) for i in range(4)]
    want = [list(run_all(engine(["match", *use], backend), [r])[0].new) for r in asked]
    e = engine(["match", *use, Harsh()], backend)
    seqs = run_all(e, asked)
    assert [list(s.new) for s in seqs] == want
    assert sum(s.counts.preempted for s in seqs) > 5
    if "prefix" not in use:  # which keeps rows while there is room
        assert sum(s.counts.recomputed for s in seqs) > 0
    e.close()
    assert e.store.held == 0


@pytest.mark.parametrize("use", [[], ["kvfmt.int8"], ["snapkv:budget=24,window=8"]], ids=str)
@pytest.mark.parametrize("dear", [True, False], ids=["copying is cheaper", "running again is cheaper"])
def test_rows_leave_memory_where_that_costs_less(
    use: list[str], dear: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(core, "PROMPT_GRID", 32)
    monkeypatch.setattr(core, "DECODE_GRID", 16)
    asked = [Request(prompt(30 + 25 * i, i), 40, 0.7 * (i % 2), seed=i, ignore_eos=True) for i in range(4)]
    want = [list(run_all(engine(["match", *use], "native"), [r])[0].new) for r in asked]
    e = engine(["match", *use, Harsh(), f'swap:folder="{tmp_path}"'], "native")
    monkeypatch.setattr(e.cost, "prefill", lambda rows, context=0: 1e9 if dear else 0.0)
    seqs = run_all(e, asked)
    assert [list(s.new) for s in seqs] == want
    swapped = sum(s.counts.swapped for s in seqs)
    preempted = sum(s.counts.preempted for s in seqs)
    assert preempted > 5
    assert swapped == (preempted if dear else 0)
    assert (sum(s.counts.recomputed for s in seqs) == 0) == dear
    e.close()
    assert e.store.held == 0


def test_a_folder_that_cannot_be_written_is_told():
    with pytest.raises(MethodError, match="another folder"):
        engine(["match", "swap:folder=/proc/nowhere"])


def test_a_preempted_sequence_can_be_cancelled():
    e = engine(["match", "prefix", Harsh(2)])
    seqs = [e.submit(Request(prompt(40, i), 30, ignore_eos=True))[0] for i in range(3)]
    while not any(s.counts.preempted and s in e.waiting for s in seqs):
        e.step()
    (gone,) = [s for s in seqs if s in e.waiting and s.counts.preempted]
    e.cancel(gone)
    while e.busy:
        e.step()
    assert gone.finish == "cancelled"
    assert all(s.n_new == 30 for s in seqs if s is not gone)
    e.close()
    assert e.store.held == 0


# ------------------------------------------------------------------------------- waiting for others' rows


def burst(e: Engine, n: int, shared: int, own: int) -> list[Seq]:
    start = prompt(shared, 9)
    asked = [Request(start + prompt(own, 100 + i), 8, ignore_eos=True) for i in range(n)]
    return run_all(e, asked)


def test_a_beginning_that_all_share_is_run_once():
    seqs = burst(engine(["match", "prefix", "fcfs"]), 8, 300, 10)
    assert sum(s.counts.prompt_rows for s in seqs) == 300 + 8 * 10
    assert sum(s.counts.reused for s in seqs) == 7 * 300
    alone = burst(engine(["match", "fcfs"]), 8, 300, 10)
    assert [list(s.new) for s in seqs] == [list(s.new) for s in alone]
    assert sum(s.counts.prompt_rows for s in alone) == 8 * 310


def test_who_shares_a_beginning_does_not_wait_for_the_rest_of_a_long_prompt():
    """The shared rows are handed on as soon as they are there."""
    e = engine(["match", "prefix", Fcfs(64, 16)])
    start = prompt(100, 9)
    (leader,) = e.submit(Request(start + prompt(900, 1), 4, ignore_eos=True))
    (other,) = e.submit(Request(start + prompt(10, 2), 4, ignore_eos=True))
    while not other.finish:
        e.step()
    assert leader.kv.length < 900
    assert other.counts.reused >= 100
    while e.busy:
        e.step()


def test_nobody_waits_for_a_leader_that_is_gone():
    e = engine(["match", "prefix", Fcfs(32, 16)])
    start = prompt(400, 9)
    (leader,) = e.submit(Request(start, 4, ignore_eos=True))
    (other,) = e.submit(Request(start + prompt(10, 2), 4, ignore_eos=True))
    e.step()
    e.step()
    assert other in e.waiting
    e.cancel(leader)
    while e.busy:
        e.step()
    assert other.n_new == 4


def test_forced_tokens_say_so():
    e = engine(["match", "regex:pattern=abcdefgh[0-9]"])
    (s,) = run_all(e, [Request(prompt(9), 12)])
    assert bytes(s.new[:8]) == b"abcdefgh"
    assert Origin.FORCED in s.origins
    assert Origin.DRAFTED not in s.origins
