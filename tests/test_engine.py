"""The engine on a tiny random model: batching, stopping, forking, accounting, refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pronghorn.errors import RequestError
from pronghorn.nulls import EXACT
from pronghorn.rng import uniform
from pronghorn.seq import Request
from pronghorn.types import Draft, Origin
from tests.engines import EOS, engine, generate, prompt, run_all


@dataclass(frozen=True)
class Oracle:
    """A drafter for tests: the right answer as a chain with wrong siblings, some of it spoilt."""

    answer: tuple[int, ...]
    n_prompt: int
    spoil: int = 4
    slot = "draft"
    traits = EXACT

    def propose(self, seqs: Any, k: Any, room: Any) -> list[Draft]:
        out = []
        for seq, most in zip(seqs, k, strict=True):
            at = len(seq.tokens) - self.n_prompt
            tokens, parent, node = [], [], -1
            for d in range(min(most, 5)):
                if at + d >= len(self.answer):
                    break
                right = self.answer[at + d]
                if self.spoil and (at + d) % self.spoil == 0:
                    right = (right + 1) % 256
                tokens += [(right + 7) % 256, right]
                parent += [node, node]
                node = len(tokens) - 1
            out.append(Draft(np.array(tokens, np.int32), np.array(parent, np.int32)))
        return out

    def observe(self, seqs: Any, drafts: Any, accepts: Any, taps: Any) -> None:
        pass


def test_batch_equals_alone():
    ids = [prompt(n, n) for n in (1, 7, 40, 90)]
    alone = [generate(engine(), p) for p in ids]
    e = engine()
    together = run_all(e, [Request(p, max_tokens=48, ignore_eos=True) for p in ids])
    assert [list(s.new) for s in together] == alone
    assert e.store.held == 0


def test_joining_and_leaving_changes_nothing():
    want = [generate(engine(), prompt(20, i), 10 + 9 * i, temperature=0.9, seed=i) for i in range(4)]
    e = engine()
    seqs = []
    for i in range(4):
        r = Request(prompt(20, i), max_tokens=10 + 9 * i, temperature=0.9, seed=i, ignore_eos=True)
        seqs += e.submit(r)
        for _ in range(5):
            e.step()
    while e.busy:
        e.step()
    assert [list(s.new) for s in seqs] == want


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_tree_drafter_changes_no_token(temperature: float):
    p = prompt(30, 3)
    plain = generate(engine(), p, 60, temperature=temperature, seed=5)
    drafted = Oracle(tuple(plain), len(p))
    e = engine(["match", drafted])
    (group,) = e.run([Request(p, 60, temperature, 5, ignore_eos=True)])
    seq = group[0]
    assert list(seq.new) == plain
    assert seq.counts.accepted > 30
    assert seq.counts.steps < 40
    assert sum(o is Origin.DRAFTED for o in seq.origins) == seq.counts.accepted


def test_a_seed_gives_the_same_text_and_another_seed_another():
    a, b, c = (generate(engine(), prompt(12), 40, temperature=1.0, seed=s) for s in (1, 1, 2))
    assert a == b != c


def test_random_stream_is_keyed_by_everything():
    base = (3, 1, 10, 0)
    seen = {uniform(*base)}
    for i in range(4):
        key = list(base)
        key[i] += 1
        seen.add(uniform(*key))
    assert len(seen) == 5
    assert uniform(*base) == uniform(*base)
    xs = [uniform(0, 0, i, 0) for i in range(2000)]
    assert abs(np.mean(xs) - 0.5) < 0.03


def test_end_of_text_and_length():
    e = engine()
    (a,) = run_all(e, [Request(prompt(9), max_tokens=5, ignore_eos=True)])
    assert (a.finish, a.n_new) == ("length", 5)
    end = generate(engine(), prompt(9), 30)
    token = end[10]
    e = engine()
    e.eos = frozenset([token])
    (s,) = run_all(e, [Request(prompt(9), max_tokens=30)])
    assert s.finish == "stop"
    assert list(s.new) == end[: end.index(token) + 1]


def test_stop_string_is_cut_out_and_never_half_shown():
    full = generate(engine(), prompt(9), 30)
    text = bytes(t for t in full if t != EOS).decode("utf-8", "replace")
    stop = text[6:9]
    e = engine()
    (s,) = e.submit(Request(prompt(9), max_tokens=30, stop=(stop,), ignore_eos=True))
    out = ""
    while e.busy:
        for event in e.step():
            out += event.text
            assert stop not in out
    assert out == text[: text.index(stop)]
    assert s.finish == "stop"


def test_cancel_frees_pages_at_once():
    e = engine()
    (a,) = e.submit(Request(prompt(50), max_tokens=99, ignore_eos=True))
    (b,) = e.submit(Request(prompt(50, 2), max_tokens=6, ignore_eos=True))
    e.step()
    held = e.store.held
    e.cancel(a)
    assert a.finish == "cancelled"
    assert e.store.held < held
    while e.busy:
        e.step()
    assert list(b.new) == generate(engine(), prompt(50, 2), 6)
    assert e.store.held == 0


def test_kv_equals_a_prompt_run_afresh_after_many_drafts():
    """T-KV: after drafting and rejecting, the stored rows are those of a plain run."""
    p = prompt(30, 3)
    answer = generate(engine(), p, 60)
    e = engine(["match", Oracle(tuple(answer), len(p), spoil=3)])
    (s,) = e.submit(Request(p, max_tokens=99, ignore_eos=True))
    while s.n_new < 50:
        e.step()
    n = s.kv.length
    fresh = engine()
    (t,) = fresh.submit(Request(tuple(s.tokens[:n]), max_tokens=9, ignore_eos=True))
    fresh.step()
    for layer in range(2):
        for head in range(2):
            a = e.store.read_open(s.kv, layer, head, len(s.kv.open))
            b = fresh.store.read_open(t.kv, layer, head, len(t.kv.open))
            for x, y in zip(a, b, strict=True):
                assert np.abs(x[:n] - y[:n]).max() < 1e-9


def test_score_agrees_with_generation():
    p = prompt(20, 4)
    e = engine()
    (s,) = run_all(e, [Request(p, max_tokens=8, logprobs=True, ignore_eos=True)])
    whole = p + tuple(s.new)
    (t,) = run_all(engine(), [Request(whole, max_tokens=0, score=True)])
    assert len(t.prompt_logprobs) == len(whole) - 1
    assert np.allclose(t.prompt_logprobs[-8:], s.logprobs)


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (Request(()), "empty"),
        (Request((1, 999)), "999"),
        (Request((1, -1)), "-1"),
        (Request((1,), max_tokens=0), "max_tokens"),
        (Request((1,), temperature=-1.0), "temperature"),
        (Request((1,), temperature=float("nan")), "temperature"),
        (Request((1,) * 5000), "context"),
    ],
)
def test_bad_requests_are_refused(request_: Request, word: str):
    e = engine()
    with pytest.raises(RequestError, match=word):
        e.submit(request_)
    assert not e.busy


def test_a_request_that_cannot_fit_the_memory_is_refused():
    e = engine(kv_bytes=1 << 18)
    with pytest.raises(RequestError, match="memory"):
        e.submit(Request(prompt(200), max_tokens=1000))


def test_memory_limit_queues_and_everybody_finishes():
    e = engine(kv_bytes=1 << 20)
    rows = e.kv_rows
    n = rows // 3
    seqs = run_all(e, [Request(prompt(n // 2, i), n // 4, ignore_eos=True) for i in range(8)])
    assert all(s.n_new == n // 4 for s in seqs)


def test_an_interrupted_step_harms_nobody(monkeypatch: pytest.MonkeyPatch):
    e = engine(["match", "prefix"])
    e.submit(Request(prompt(30), max_tokens=30, ignore_eos=True))
    for _ in range(4):
        e.step()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(e.runner, "commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            e.step()
    assert not e.busy
    assert e.store.held == e.store.full_bytes(30), "of a step that was cut short no row is kept for reuse"
    assert generate(e, prompt(30), 30) == generate(engine(), prompt(30), 30)


def test_logits_that_are_not_finite_end_their_request_only(monkeypatch: pytest.MonkeyPatch):
    e = engine()
    (a,) = e.submit(Request(prompt(9), max_tokens=9, ignore_eos=True))
    (b,) = e.submit(Request(prompt(9, 2), max_tokens=9, ignore_eos=True))
    run = e.runner.run

    def spoilt(rows: Any, kvs: Any, taps: bool) -> Any:
        out = run(rows, kvs, taps)
        if len(out.logits) == 2:
            out.logits[0] = np.nan
        return out

    monkeypatch.setattr(e.runner, "run", spoilt)
    while e.busy:
        e.step()
    assert a.finish == "error"
    assert "finite" in a.error
    assert list(b.new) == generate(engine(), prompt(9, 2), 9)


def test_stored_prefixes_give_way_to_requests():
    e = engine(["match", "prefix"], kv_bytes=1 << 20)
    limit = e.kv_rows * e.store.full_bytes(1024) / 1024
    for i in range(12):
        generate(e, prompt(e.kv_rows // 3, i), 4)
        assert e.store.held <= limit
    assert e.store.held > 0
    generate(e, prompt(e.kv_rows - 8, 99), 8)
    e.close()
    assert e.store.held == 0


def test_generation_ends_with_the_context():
    e = engine(max_position_embeddings=64)
    (s,) = run_all(e, [Request(prompt(60), max_tokens=50, ignore_eos=True)])
    assert s.finish == "length"
    assert len(s.tokens) == 64


def test_padding_of_the_output_layer_is_never_drawn(monkeypatch: pytest.MonkeyPatch):
    """Checkpoints pad their output layer beyond the tokenizer's vocabulary."""
    e = engine()
    run = e.runner.run

    def padded(rows: Any, kvs: Any, taps: bool) -> Any:
        out = run(rows, kvs, taps)
        pad = np.full((len(out.logits), 40), 1e3)
        return out._replace(logits=np.concatenate([out.logits, pad], axis=1))

    monkeypatch.setattr(e.runner, "run", padded)
    assert generate(e, prompt(9), 20) == generate(engine(), prompt(9), 20)
    assert max(generate(e, prompt(9), 20, temperature=5.0)) < 256


def test_a_refusal_strands_no_other_request():
    e = engine()
    with pytest.raises(RequestError, match="empty"):
        e.run([Request(prompt(9), max_tokens=5), Request(())])
    assert not e.busy
    assert e.store.held == 0
