"""Schedulers in the engine: whatever they decide, every answer has the tokens that it has alone."""

from __future__ import annotations

import pytest

from pronghorn.compose import names
from pronghorn.seq import Request
from tests.engines import engine, prompt

NAMES = names()["sched"]
OPTIONS = {
    "fcfs": "", "sarathi": ":reserve=1,least=5,tbt=0.0001", "splitfuse": ":reserve=1,rows=24",
    "vtc": ":reserve=1,least=5,tbt=0.0001", "batch": ":reserve=1,rows=40",
}  # fmt: skip


def requests() -> list[Request]:
    """Two pairs share a prefix; priorities, users and lengths differ."""
    head = prompt(70, 1)
    texts = [
        head + prompt(9, 2), prompt(33, 3), head + prompt(20, 4), prompt(5, 5), prompt(50, 6), prompt(90, 7),
    ]  # fmt: skip
    return [
        Request(t, 40 + i, 0.5 * (i % 2), seed=i, ignore_eos=True, priority=i % 3 == 2, user="ab"[i % 2])
        for i, t in enumerate(texts)
    ]


@pytest.mark.parametrize("more", [[], ["prefix"], ["kvfmt.int8"]], ids=["plain", "prefix", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_each_alone(name: str, more: list[str]) -> None:
    """Memory holds little more than the longest needs, so that sequences are preempted and run again."""
    alone = [engine(["match", *more], "native").run([r])[0][0].new for r in requests()]
    e = engine(["match", name + OPTIONS[name], *more], "native", kv_bytes=1)
    need = max(len(r.ids) + r.max_tokens for r in requests())
    e.kv_rows = e.memory.kv_rows = need + 64
    for n in (1, 8, 64, 256):  # of a machine that does not change: on a slow one all would run one by one
        e.cost.observe(n, n, 2e-5 + 2e-6 * n)
    e.cost.observe = lambda rows, read, seconds: None
    together = [seqs[0] for seqs in e.run(requests())]
    assert [s.new for s in together] == alone
    if name != "fcfs" and not more:  # shared or packed rows may all fit
        assert sum(s.counts.preempted for s in together) > 0
    e.close()
    assert e.store.held == 0


@pytest.mark.parametrize("name", NAMES)
def test_branches_have_their_places(name: str) -> None:
    """Several answers to one prompt, beside others."""
    wanted = [Request(prompt(30, i), 12, 1.0, seed=i, ignore_eos=True, n=3) for i in range(4)]
    alone = [[s.new for s in engine(["match"], "native").run([r])[0]] for r in wanted]
    e = engine(["match", name + OPTIONS[name]], "native")
    assert [[s.new for s in seqs] for seqs in e.run(wanted)] == alone
    e.close()
    assert e.store.held == 0


def test_batch_computes_a_prefix_once() -> None:
    """Twenty prompts over four prefixes, mixed: every prefix runs once, every suffix once."""
    heads = [prompt(128, 10 + i) for i in range(4)]
    wanted = [Request(heads[i % 4] + prompt(16, 50 + i, False), 8, ignore_eos=True) for i in range(20)]
    e = engine(["match", "batch:max_running=4", "prefix"], "native")
    ran = sum(seqs[0].counts.prompt_rows for seqs in e.run(wanted))
    assert ran <= 4 * 128 + 20 * 16 + 20
    e.close()
