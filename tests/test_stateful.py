"""Random use of the engine: requests come, share prefixes, branch, stop and are cancelled at any time,
under randomly drawn methods and little memory.

After every step each block must be referred to as often as it counts, and what is held must respect the
limit; in the end every answer must be the one that its request gets alone, without the exact methods.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from pronghorn import memory as core
from pronghorn.compose import Facts, compose
from pronghorn.compose import check as refuses
from pronghorn.engine import Engine
from pronghorn.kv.arena import Arena
from pronghorn.kv.layout import PAGE
from pronghorn.kv.store import SeqKV
from pronghorn.seq import Request, Seq
from tests.engines import EOS, engine, prompt
from tests.small import spec, specs


@pytest.fixture(autouse=True)
def fine_grids(monkeypatch: pytest.MonkeyPatch):
    """Barriers close enough together that short texts cross many."""
    monkeypatch.setattr(core, "PROMPT_GRID", 32)
    monkeypatch.setattr(core, "DECODE_GRID", 16)


# ------------------------------------------------------------------------------- what must hold


def check_arena(arena: Arena, tables: list[np.ndarray]) -> None:
    """Every block is referred to as often as it counts; what nobody holds is free; slabs likewise."""
    assert all(len(set(t.tolist())) == len(t) for t in tables), "a table lists a block twice"
    held = Counter(b for t in tables for b in t.tolist())
    assert {b: int(n) for b, n in enumerate(arena.refs) if n} == dict(held)
    free = [
        s * arena.per_slab + i
        for s, slab in enumerate(arena.slabs) if slab is not None
        for i in range(arena.per_slab)
        if s * arena.per_slab + i not in held
    ]  # fmt: skip
    assert arena.free_ids == free[::-1]
    live = Counter(b // arena.per_slab for b in held)
    assert [int(n) for n in arena.live] == [live[s] for s in range(len(arena.slabs))]
    assert all((slab is not None) == bool(live[s]) for s, slab in enumerate(arena.slabs))


def check_rows(e: Engine, kv: SeqKV) -> None:
    """Pages, fills, positions and pointers of one sequence fit each other."""
    assert len(kv.open) == -(-kv.n_open // PAGE)
    assert len(kv.open_pos) == len(kv.open) * PAGE
    assert (kv.open_addr == e.store.open_arena.address(kv.open)).all()
    for g, s in enumerate(kv.sealed):
        assert len(s.fill) == len(s.blocks) == len(s.addr)
        assert (s.fill > 0).all()
        if e.store.fmt.group <= 1:  # pages whose rows are packed together are not opened again
            assert (s.fill[:-1] == PAGE).all()
        assert (s.addr == e.store.sealed_arena.address(s.blocks)).all()
        assert kv.table[g, 3] == len(s.blocks)
        if len(s.blocks):
            assert tuple(kv.table[g, :3]) == (s.addr.ctypes.data, s.fill.ctypes.data, s.pos.ctypes.data)
        pos = np.concatenate([s.pos[s.slots()], kv.open_pos[: kv.n_open]])
        assert (np.diff(pos) > 0).all()
        assert not len(pos) or pos[-1] < kv.next_pos
        assert kv.dropped or not len(pos) or pos[-1] == kv.next_pos - 1
        if not kv.dropped:
            assert pos.tolist() == list(range(kv.length))


def check(e: Engine) -> None:
    states = [b for held in [getattr(e.methods.reuse, "_held", None)] if held for t in held.trees for b in t]
    branches = [s for group in e.siblings.values() for s in group]
    seqs = [*e.running, *e.waiting, *branches]
    assert len(set(seqs)) == len(seqs)
    assert set(e.texts) == {s.id for s in seqs}
    assert not any(s.finish for s in seqs)
    kvs = [*(s.kv for s in seqs), *(s.kv for s in states)]
    check_arena(e.store.open_arena, [kv.open for kv in kvs])
    for g in range(len(e.store.sealed_layout.groups)):
        assert all(len(kv.sealed) > g for kv in kvs)
    check_arena(
        e.store.sealed_arena,
        [np.concatenate([s.blocks for s in kv.sealed]) for kv in kvs],
    )
    for kv in kvs:
        check_rows(e, kv)
    for s in e.running:
        assert s.kv.length < len(s.tokens)
        assert not s.n_new or s.decoding
    page = e.store.row_bytes * PAGE
    assert e.store.held <= e.kv_rows * e.store.row_bytes + 2 * page * len(e.running)


# ------------------------------------------------------------------------------- what is drawn


def pick(r: random.Random, options: list[str], chance: float) -> list[str]:
    return [r.choice(options)] if r.random() < chance else []


def methods(r: random.Random) -> tuple[list[str], list[str]]:
    """Methods that say what the answer is, and exact ones that may change nothing."""
    shapers = r.sample(specs("shape"), r.choice([0, 0, 1, 2]))
    asked = [
        *pick(r, specs("kv"), 0.6), *pick(r, specs("select"), 0.4), *pick(r, specs("kvfmt"), 0.5),
        *pick(r, specs("constrain"), 0.2), *pick(r, [spec("best-of-n")], 0.25), *shapers,
    ]  # fmt: skip
    for slot in ("select", "kvfmt"):
        if refuses(compose(["match", *asked]), Facts(2, 4096, False, False)):
            asked = [m for m in asked if m not in specs(slot)]
    chunk, rows = r.choice([1, 7, 16, 17, 33, 256]), r.choice([2, 19, 64, 512])
    fcfs = f"fcfs:chunk={chunk},rows={rows},max_running={r.choice([1, 3, 32])}"
    exact = [
        *pick(r, specs("draft"), 0.8),
        *pick(r, ["prefix", "prefix:gb=0.0001"], 0.8),
        *pick(r, [fcfs], 0.8),
    ]
    return asked, exact


def requests(r: random.Random, n: int, limit: int) -> list[Request]:
    """Requests whose prompts begin alike for random lengths."""
    trunk = prompt(200, r.randrange(99), repeat=r.random() < 0.5)
    out: list[Request] = []
    for i in range(n):
        size = r.choice([1, 15, 16, 17, 31, 32, 33, 64, 65, r.randint(1, 200)])
        shared = r.choice([0, size, r.randint(0, size), size // 32 * 32])
        ids = (trunk[:shared] + prompt(200, 100 + i, repeat=False))[:size]
        if out and r.random() < 0.25:
            ids = r.choice(out).ids[: r.choice([200, 16, 40])]
        if out and r.random() < 0.2:  # a conversation goes on
            ids = (r.choice(out).ids + prompt(40, i))[:200]
        new = r.choice([1, 2, 15, 16, 17, r.randint(1, 60)])
        new = max(1, min(new, (limit - len(ids)) // 3))
        stop = tuple(map(chr, r.sample(range(32, 127), r.choice([0, 0, 3, 9]))))
        stop += ("".join(map(chr, ids[-2:])),) if r.random() < 0.2 else ()
        out.append(
            Request(
                ids, new, r.choice([0.0, 0.0, 0.9]), r.choice([0, 3, -1, 1 << 70]), stop,
                r.random() < 0.5, r.random() < 0.3, r.random() < 0.12,
            )
        )  # fmt: skip
    return out


def text_of(seq: Seq) -> str:
    """The answer's text, worked out at once from its tokens."""
    ended = seq.finish == "stop" and seq.tokens[-1] == EOS and not seq.request.ignore_eos
    ids = list(seq.new)[:-1] if ended else list(seq.new)
    text = bytes(t for t in ids if t != EOS).decode("utf-8", "replace")
    at = [(i + len(s), i) for s in seq.request.stop if (i := text.find(s)) >= 0]
    return text[: min(at)[1]] if at else text


class Alone:
    """What each request answers by itself: fresh engines without the exact methods."""

    def __init__(self, asked: list[str], backend: str, model: dict[str, Any]) -> None:
        self.asked, self.backend, self.model = asked, backend, model
        self.known: dict[Request, list[Seq]] = {}

    def __call__(self, request: Request) -> list[Seq]:
        if request not in self.known:
            e = engine([*self.asked, "match"], self.backend, **self.model)
            seqs = e.submit(request)
            while e.busy:
                e.step()
            assert e.store.held == 0
            self.known[request] = seqs
        return self.known[request]


# ------------------------------------------------------------------------------- the run


def play(seed: int, backend: str, n: int, **model: Any) -> Counter[str]:
    """One engine's life; returns how often what came up. `model`: changes to the model's config."""
    r = random.Random(seed)
    asked, exact = methods(r)
    rows = r.choice([300, 450, 700, 100_000])
    size = int(engine([*asked, "match"], backend, **model).store.row_bytes)
    e = engine([*asked, "match", *exact], backend, kv_bytes=rows * size, **model)
    alone = Alone(asked, backend, model)
    todo = requests(r, n, min(e.kv_rows, 400))
    groups: list[list[Seq]] = []
    shown: dict[Seq, str] = {}
    seen: Counter[str] = Counter()
    steps = budget = 0
    while todo or e.busy:
        for _ in range(r.choice([0, 1, 1, 4]) if todo else 0):
            if todo:
                groups.append(e.submit(todo.pop()))
                budget += sum(s.n_prompt + s.request.max_tokens for s in groups[-1])
        for _ in range(r.choice([1, 1, 3, 10])):
            for event in e.step():
                shown[event.seq] = shown.get(event.seq, "") + event.text
            check(e)
            steps += 1
        live = [s for g in groups for s in g if not s.finish]
        if live and r.random() < 0.06:
            e.cancel(r.choice(live))
            check(e)
        assert steps <= 2 * budget + 40 * n + 40, "no progress"
    for group in groups:
        for seq, want in zip(group, alone(group[0].request), strict=True):
            seen[seq.finish] += 1
            seen["reused"] += seq.counts.reused > 0 and seq.branch == 0
            seen["accepted"] += seq.counts.accepted
            if seq.finish == "cancelled":
                assert list(seq.new) == list(want.new)[: seq.n_new]
                continue
            assert (list(seq.new), seq.finish, seq.error) == (list(want.new), want.finish, want.error)
            assert np.allclose(seq.logprobs, want.logprobs, rtol=0, atol=0 if backend == "native" else 1e-9)
            assert shown.get(seq, "") == text_of(seq)
    e.close()
    check(e)
    assert e.store.held == e.store.reserved == 0
    return seen


@pytest.mark.parametrize("seed", range(50))
def test_random_use(seed: int):
    window = {"model_type": "mistral", "sliding_window": 24} if seed % 5 == 0 else {}
    play(seed, "native", 9, **window)


@pytest.mark.parametrize("seed", range(100, 106))
def test_random_use_of_the_oracle(seed: int):
    play(seed, "ref64", 7)


def test_random_use_reaches_what_it_is_for():
    seen = sum((play(seed, "native", 9) for seed in range(200, 208)), Counter[str]())
    assert {"stop", "length", "cancelled", "reused", "accepted"} <= set(seen)
