"""The edges of what a request may ask: temperatures, shapers, seeds, lengths, stop strings, drafts that
end with the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pronghorn import memory as core
from pronghorn.errors import RequestError
from pronghorn.llm import LLM
from pronghorn.rng import uniform
from pronghorn.seq import Request, Seq
from tests.engines import EOS, engine, generate, prompt
from tests.test_engine import Oracle

BACKENDS = ["ref64", "native"]
EDGES = [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65]


@pytest.fixture
def fine_grids(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(core, "PROMPT_GRID", 32)
    monkeypatch.setattr(core, "DECODE_GRID", 16)


# ------------------------------------------------------------------------------- numbers


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("use", [(), ("top-k",), ("temperature:value=0.5", "min-p"), ("top-p",)])
@pytest.mark.parametrize("temperature", [1e-6, 1e-300, 5e-324])
def test_tiny_temperatures_are_greedy(temperature: float, use: tuple[str, ...]):
    want = generate(engine(), prompt(20), 12)
    assert generate(engine(["match", *use]), prompt(20), 12, temperature=temperature) == want


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", ["1e-6", "1e-310", "0"])
def test_a_tiny_temperature_of_the_set_up_is_greedy(value: str):
    e = engine(["match", f"temperature:value={value}", "top-p"])
    assert generate(e, prompt(20), 12, temperature=0.9) == generate(engine(), prompt(20), 12)


@pytest.mark.filterwarnings("error")
def test_huge_temperatures_are_nearly_uniform():
    out = generate(engine(), prompt(20), 600, temperature=1e5)
    counts = np.bincount(np.array(out) // 32, minlength=8)
    assert counts.min() > 40  # 75 expected; 40 is over four deviations away


@pytest.mark.parametrize("shaper", ["top-k:k=1", "min-p:p=1", "top-p:p=1e-9"])
@pytest.mark.parametrize("temperature", [0.9, 1e5])
def test_shapers_that_leave_one_token_are_greedy(shaper: str, temperature: float):
    want = generate(engine(), prompt(20), 12)
    assert generate(engine(["match", shaper]), prompt(20), 12, temperature=temperature) == want


@pytest.mark.parametrize("shaper", ["top-k:k=9999", "min-p:p=0", "top-p:p=1", "logit-bias"])
def test_shapers_that_leave_all_change_nothing(shaper: str):
    want = generate(engine(), prompt(20), 30, temperature=0.9, seed=4)
    assert generate(engine(["match", shaper]), prompt(20), 30, temperature=0.9, seed=4) == want


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_of_100_forces_and_of_minus_100_forbids(temperature: float):
    forced = engine(["match", 'logit-bias:bias="65:100"'])
    assert generate(forced, prompt(20), 12, temperature=temperature) == [65] * 12
    free = generate(engine(), prompt(20), 30, temperature=temperature)
    pairs = ",".join(f"{t}:-100" for t in sorted(set(free)))
    other = generate(engine(["match", f'logit-bias:bias="{pairs}"']), prompt(20), 30, temperature=temperature)
    assert not set(other) & set(free)


@pytest.mark.parametrize("seed", [-1, -(1 << 70), (1 << 64) - 1, 1 << 64, (1 << 70) + 5, 1 << 63])
def test_any_whole_number_is_a_seed(seed: int):
    a, b = (generate(engine(), prompt(12), 20, temperature=1.0, seed=s) for s in (seed, seed + 1))
    assert a != b
    assert uniform(seed, 0, 9, 0) != uniform(seed + 1, 0, 9, 0)
    assert 0 <= uniform(seed, 0, 9, 0) < 1


# ------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("use", [("kvfmt.int8",), ("streaming-llm:window=40,every=16,prompt_every=32",)])
@pytest.mark.usefixtures("fine_grids")
def test_prefixes_at_the_edges_of_pages_and_grids(backend: str, use: tuple[str, ...]):
    """What is reused at a barrier is acted on as when it is run: sealed, packed, dropped."""
    for size in EDGES:
        one = prompt(size, 1, repeat=False)
        for more in (1, 16, 40):
            two = one + prompt(more, 2, repeat=False)
            e = engine(["match", "prefix", *use], backend)
            generate(e, one, 3)
            got = generate(e, two, 20)
            assert got == generate(engine(["match", *use], backend), two, 20), (size, more)
            e.close()
            assert e.store.held == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1, 16, 33])
def test_one_token(backend: str, size: int):
    e = engine(["match", "prefix", "prompt-lookup"], backend)
    p = prompt(size, 3)
    want = generate(engine(backend=backend), p, 5)
    for _ in range(3):
        (seq,) = e.submit(Request(p, 1, ignore_eos=True))
        assert [ev.finish for ev in e.step()] == ["length"]
        assert list(seq.new) == want[:1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_prompts_as_long_as_the_context(backend: str):
    def fresh() -> Any:
        return engine(["match", "prompt-lookup"], backend, max_position_embeddings=64)

    (group,) = fresh().run([Request(prompt(63), 9, ignore_eos=True)])
    assert (group[0].n_new, group[0].finish) == (1, "length")
    with pytest.raises(RequestError, match="context"):
        fresh().submit(Request(prompt(64), 1))
    (group,) = fresh().run([Request(prompt(64), 0, score=True)])
    assert len(group[0].prompt_logprobs) == 63
    with pytest.raises(RequestError, match="context"):
        fresh().submit(Request(prompt(65), 0, score=True))


def test_an_answer_takes_no_more_room_than_the_context_has():
    e = engine(["match"], kv_bytes=1 << 18, max_position_embeddings=64)
    assert e.kv_rows < 1000
    (group,) = e.run([Request(prompt(60), 10**9, ignore_eos=True)])
    assert (group[0].n_new, group[0].finish) == (4, "length")


def test_scoring_asks_for_no_room_for_an_answer():
    e = engine(kv_bytes=1 << 18)
    (group,) = e.run([Request(prompt(e.kv_rows), 0, score=True)])
    assert len(group[0].prompt_logprobs) == e.kv_rows - 1


# ------------------------------------------------------------------------------- drafts


def right(ids: Sequence[int], answer: list[int]) -> Any:
    return engine(["match", Oracle(tuple(answer), len(ids), spoil=0)])


@pytest.mark.parametrize("n", range(1, 14))
def test_a_draft_that_reaches_max_tokens(n: int):
    p = prompt(20, 3)
    answer = generate(engine(), p, 20)
    e = right(p, answer)
    (group,) = e.run([Request(p, n, ignore_eos=True)])
    assert list(group[0].new) == answer[:n]
    assert len(group[0].origins) == n
    assert group[0].finish == "length"


@pytest.mark.parametrize("at", range(9))
def test_the_end_of_text_inside_a_draft(at: int):
    p = prompt(20, 3)
    answer = generate(engine(), p, 20, temperature=1.0, seed=9)
    e = right(p, answer)
    e.eos = frozenset([answer[at]])
    (seq,) = e.submit(Request(p, 20, 1.0, 9))
    while e.busy:
        e.step()
        assert seq.finish or seq.kv.length == len(seq.tokens) - 1
    first = answer.index(answer[at]) + 1
    assert (list(seq.new), seq.finish) == (answer[:first], "stop")
    assert len(seq.origins) == first
    assert e.store.held == 0


# ------------------------------------------------------------------------------- stop strings


def says(text: str, ids: Sequence[int], stop: tuple[str, ...], drafted: bool) -> tuple[Seq, str]:
    """The sequence and the streamed text of an engine whose model writes `text`, byte by byte."""
    answer = list(text.encode())
    e = engine(["match", *([Oracle(tuple(answer), len(ids), spoil=0)] if drafted else [])])
    run = e.runner.run

    def scripted(rows: Any, kvs: Any, taps: bool) -> Any:
        out = run(rows, kvs, taps)
        out.logits[:] = 0
        at = rows.pos[rows.want == 1] + 1 - len(ids)
        for row, i in enumerate(at):
            out.logits[row, answer[i] if 0 <= i < len(answer) else EOS] = 9
        return out

    e.runner.run = scripted  # type: ignore[method-assign]
    (seq,) = e.submit(Request(tuple(ids), 50, stop=stop))
    shown = ""
    while e.busy:
        for event in e.step():
            shown += event.text
            assert not any(s and s in shown for s in stop)
    return seq, shown


@pytest.mark.parametrize("drafted", [False, True])
@pytest.mark.parametrize(
    ("text", "stop", "want"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("zzz",), "one two three"),
        ("aaab aab", ("aab",), "a"),
        ("price: 5 € or 6 €", ("€ or",), "price: 5 "),
        ("naïve 日本語 text", ("本語",), "naïve 日"),
        ("naïve 日本語 text", ("ï",), "na"),
        ("ends with the sto", ("stop",), "ends with the sto"),
        ("first or second", ("second", "or"), "first "),
        ("abcd", ("bcd", "c"), "ab"),
        ("stop at once", ("s",), ""),
        ("an empty one", ("",), "an empty one"),
    ],
)
def test_stop_strings(text: str, stop: tuple[str, ...], want: str, drafted: bool):
    seq, shown = says(text, prompt(9), stop, drafted)
    assert shown == want
    assert seq.finish == "stop"


@pytest.mark.parametrize("drafted", [False, True])
def test_a_stop_string_at_the_end_of_the_prompt_does_not_stop(drafted: bool):
    ids = [*b"say it: END"]
    assert says("well END now", ids, ("END",), drafted)[1] == "well "
    assert says("D and more", ids, ("ND",), drafted)[1] == "D and more"
    assert says("ND and more", [*b"say it: E"], ("END",), drafted)[1] == "ND and more"


# ------------------------------------------------------------------------------- branches and memory


@pytest.mark.parametrize("which", [[1], [2], [1, 2]])
def test_branches_cancelled_before_they_start(which: list[int]):
    def ask(e: Any) -> list[Seq]:
        return e.submit(Request(prompt(20), 9, 0.9, 3, ignore_eos=True))

    e = engine(["match", "best-of-n:n=3", "fcfs:chunk=8"])
    seqs = ask(e)
    e.step()
    for i in which:
        e.cancel(seqs[i])
    while e.busy:
        e.step()
    other = engine(["match", "best-of-n:n=3"])
    want = ask(other)
    while other.busy:
        other.step()
    for i, seq in enumerate(seqs):
        assert seq.finish == ("cancelled" if i in which else "length")
        assert list(seq.new) == ([] if i in which else list(want[i].new))
    assert e.store.held == 0
    assert not e.texts


def test_a_step_cut_short_ends_the_branches_that_started_in_it(monkeypatch: pytest.MonkeyPatch):
    e = engine(["match", "best-of-n:n=3"])
    seqs = e.submit(Request(prompt(20), 9, 0.9, ignore_eos=True))

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(e.drafting, "observe", interrupt)
        with pytest.raises(KeyboardInterrupt):
            e.step()
    assert [s.finish for s in seqs] == ["cancelled"] * 3
    assert not e.busy
    assert e.store.held == 0


@pytest.mark.parametrize("use", [(), ("quest:tokens=48",), ("kvfmt.int8",), ("snapkv:budget=24,window=8",)])
def test_stored_prefixes_give_way_to_all_that_start_together(use: tuple[str, ...]):
    e = engine(["match", "prefix", "fcfs", *use], "native", kv_bytes=1 << 18)
    n = e.kv_rows // 4
    for i in range(5):
        generate(e, prompt(n - 8, i), 4)
    for i in range(10, 14):
        e.submit(Request(prompt(n - 8, i), 8, ignore_eos=True))
    most = 0
    while e.busy:
        e.step()
        most = max(most, e.store.held)
    page = 16 * e.store.row_bytes  # the last of each zone of a sequence is not full
    assert most <= e.kv_rows * e.store.row_bytes + 4 * 2 * page
    generate(e, prompt(n), 4)
    assert e.store.held > 0


def test_a_stream_gives_the_text_of_the_best_branch_once():
    m = LLM(use=["best-of-n:n=3"], threads=1)
    with m.stream("Once upon a time", max_tokens=12, temperature=0.8, ignore_eos=True) as s:
        pieces = list(s)
        assert "".join(p.text for p in pieces) == s.answer.text
        assert [t for p in pieces for t in p.tokens] == list(s.answer.tokens)
    m.close()


def test_a_stream_cancelled_by_another_says_so(monkeypatch: pytest.MonkeyPatch):
    m = LLM(threads=1)
    one, other = (
        m.stream(text, max_tokens=300, temperature=1.0, ignore_eos=True) for text in ("Once", "The river")
    )
    next(one)
    next(other)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(m.engine.runner, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(one)
    with pytest.raises(RequestError, match="cut short"):
        list(other)
    assert not m.engine.busy
    assert m.generate("Once", max_tokens=3, ignore_eos=True).stats.new_tokens == 3
    m.close()
