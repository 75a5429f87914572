"""Drafters that look up in stores: the datastore's file, REST, ADED, adaptive token recycling, RASD."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import cli
import numpy as np
import pytest

from pronghorn.datastore import MAGIC, SIZE, Datastore, Head, end
from pronghorn.datastore.build import build, order, texts, write
from pronghorn.errors import MethodError, RequestError
from pronghorn.llm import LLM
from pronghorn.methods.draft._fuse import Fused, pruned
from pronghorn.methods.draft._puct import search
from pronghorn.methods.draft._ranks import Ranks, shape, usual
from pronghorn.methods.draft._recent import follow
from pronghorn.methods.draft._trie import trie
from pronghorn.methods.draft.aded import KEPT, Aded
from pronghorn.methods.draft.rasd import Rasd
from pronghorn.methods.draft.rest import Rest
from pronghorn.methods.draft.token_recycling import TokenRecycling
from pronghorn.seq import Request
from pronghorn.slots import DraftRoom
from pronghorn.types import Accept, Draft
from tests.conformance._rig import check_draft, sequence
from tests.engines import byte_tokenizer, engine, prompt
from tests.test_losslessness import answers, prompts

V = 6  # tokens of the small texts


def stored(path: Path, lines: list[list[int]], width: int = 2) -> Datastore:
    tokens = np.concatenate([[*line, end(width)] for line in lines]).astype(f"u{width}")
    write(path, tokens, len(lines), byte_tokenizer(), "test")
    return Datastore(path)


def lines_of(r: np.random.Generator, n: int, longest: int = 40) -> list[list[int]]:
    return [r.integers(0, V, int(r.integers(1, longest))).tolist() for _ in range(n)]


# ------------------------------------------------------------------------------ the order of suffixes


@pytest.mark.parametrize("depth", [1, 2, 8, 64])
def test_order_equals_sorting(depth: int, monkeypatch: Any):
    monkeypatch.setattr("pronghorn.datastore.build.BLOCK", 7)
    r = np.random.default_rng(depth)
    for case in range(60):
        n = int(r.integers(1, 200))
        text = r.integers(0, int(r.integers(1, 5)), n) if case % 3 else np.resize([1, 2, 1], n)
        want = sorted(range(n), key=lambda i: (text[i : i + depth].tolist(), i))
        assert order(text.astype(np.uint16), depth).tolist() == want


def test_a_text_that_repeats_itself_ends_at_the_depth():
    rounds: list[int] = []
    order(np.zeros(5000, np.uint16), 64, lambda done, total: rounds.append(done))
    assert len(rounds) == 7


# ----------------------------------------------------------------------------------- looking up


def scan(lines: list[list[int]], tail: list[int]) -> list[list[int]]:
    """What follows `tail` at every place."""
    return [
        line[i + len(tail) :]
        for line in lines for i in range(len(line) - len(tail) + 1) if line[i : i + len(tail)] == tail
    ]  # fmt: skip


@pytest.mark.parametrize("width", [2, 4])
def test_find_equals_a_scan(tmp_path: Path, width: int):
    r = np.random.default_rng(width)
    for case in range(10):
        lines = lines_of(r, 12)
        store = stored(tmp_path / f"{case}", lines, width)
        for _ in range(40):
            text = r.integers(0, V, int(r.integers(1, 12))).tolist()
            least, most = int(r.integers(1, 3)), int(r.integers(3, 9))
            spans = [n for n in range(least, min(most, len(text)) + 1) if scan(lines, text[-n:])]
            span, low, high = store.find(text, most, least)
            assert span == max(spans, default=0)
            if span:
                got = [[t for t in row if t >= 0] for row in store.after(span, low, high, 5, 1000).tolist()]
                assert sorted(got) == sorted(x[:5] for x in scan(lines, text[-span:]))


def test_of_many_places_some_are_followed(tmp_path: Path):
    store = stored(tmp_path / "s", [[1, 2, 3 + i % 3] for i in range(300)])
    span, low, high = store.find([1, 2], 16, 2)
    assert (span, high - low) == (2, 300)
    rows = store.after(span, low, high, 4, 30)
    assert rows.shape == (30, 4)
    assert Counter(rows[:, 0].tolist()) == {3: 10, 4: 10, 5: 10}
    assert (rows[:, 1:] == -1).all()


def test_a_token_that_the_store_cannot_hold(tmp_path: Path):
    store = stored(tmp_path / "s", [[1, 2, 3]])
    assert store.find([1 << 20, 1, 2], 16, 2)[0] == 2
    assert store.find([1, 1 << 20], 16, 1) == (0, 0, 0)


# ------------------------------------------------------------------------------- files not to be believed


@pytest.fixture
def good(tmp_path: Path) -> Path:
    stored(tmp_path / "good", lines_of(np.random.default_rng(0), 20))
    return tmp_path / "good"


def test_what_is_written_is_read(good: Path):
    store = Datastore(good)
    store.verify()
    store.check(byte_tokenizer(), 256)
    assert store.head.whole == good.stat().st_size
    assert store.head.n_texts == 20
    assert store.head.model == "test"


def test_every_other_size_is_refused(good: Path, tmp_path: Path):
    data = good.read_bytes()
    bad = tmp_path / "bad"
    for n in [*range(0, SIZE + 20, 7), *range(SIZE, len(data), 97), len(data) - 1, len(data) + 1]:
        bad.write_bytes((data + b"\0")[:n])
        with pytest.raises(MethodError, match=r"bytes and should|no datastore|cannot read"):
            Datastore(bad)


def test_every_byte_of_the_head_counts(good: Path, tmp_path: Path):
    data, bad = good.read_bytes(), tmp_path / "bad"
    for i in range(SIZE):
        bad.write_bytes(data[:i] + bytes([data[i] ^ 0x41]) + data[i + 1 :])
        with pytest.raises(MethodError, match=r"damaged|version|no datastore"):
            Datastore(bad)


@pytest.mark.parametrize(
    "change",
    [
        {"n_tokens": 1 << 63}, {"n_tokens": (1 << 40) + 1}, {"n_tokens": 0}, {"token": 3}, {"token": 0},
        {"place": 1}, {"depth": 0}, {"n_vocab": 0}, {"n_vocab": 1 << 16}, {"n_texts": 1 << 50},
        {"n_tokens": 1 << 39}, {"n_tokens": 5}, {"place": 8}, {"token": 4},
    ],
)  # fmt: skip
def test_a_head_that_lies_is_refused(good: Path, tmp_path: Path, change: dict[str, int]):
    head = Datastore(good).head
    lying = Head(**(head.__dict__ | change))
    (tmp_path / "bad").write_bytes(lying.pack() + good.read_bytes()[SIZE:])
    with pytest.raises(MethodError, match=r"damaged|should have"):
        Datastore(tmp_path / "bad")


def test_what_is_no_file(tmp_path: Path):
    for path in (tmp_path, tmp_path / "absent", Path("/dev/null"), Path()):
        with pytest.raises(MethodError, match=r"datastore"):
            Datastore(path)
    os.mkfifo(tmp_path / "pipe")  # nobody writes: opening it must not wait
    with pytest.raises(MethodError, match="no file"):
        Datastore(tmp_path / "pipe")
    (tmp_path / "pickle").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR." + bytes(1000))
    with pytest.raises(MethodError, match="no datastore"):
        Datastore(tmp_path / "pickle")


def test_damaged_tokens_and_places_only_cost_drafts(good: Path, tmp_path: Path):
    """Whatever lies behind a valid head, drafts are trees of tokens of the vocabulary."""
    r = np.random.default_rng(1)
    data = good.read_bytes()
    drafted = 0
    for case in range(60):
        bad = bytearray(data)
        start = SIZE if case % 2 else Datastore(good).head.places_at
        span = r.integers(start, len(data), 200)
        for at in span:
            bad[at] = int(r.integers(0, 256))
        path = tmp_path / f"bad{case}"
        path.write_bytes(bad)
        d = Rest(store=str(path))
        room = DraftRoom(stores={str(path): Datastore(path)})
        for _ in range(20):
            draft = d.propose([sequence(r.integers(0, V, 20).tolist())], [6], room)[0]
            check_draft(draft, 6, byte_tokenizer().n_vocab)
            drafted += draft.n
        with pytest.raises(MethodError, match="damaged"):
            Datastore(path).verify()
    assert drafted > 0


def test_another_tokenizer_is_refused(good: Path):
    llm_words = "another tokenizer"
    with pytest.raises(MethodError, match=llm_words):
        LLM(use=[f"rest:store={good}"], backend="ref")
    with pytest.raises(MethodError, match=llm_words):
        LLM(use=[f"rasd:store={good}"], backend="ref")
    with pytest.raises(MethodError, match=llm_words):
        Datastore(good).check(byte_tokenizer(), 100)  # the model has fewer rows than the vocabulary


def test_a_request_names_no_file(good: Path):
    e = engine(["match"])
    for spec in (f"rest:store={good}", "rest:store=/etc/passwd", f"rasd:store={good}"):
        with pytest.raises(MethodError, match="not started with"):
            e.prepare(Request(prompt(20), 4, use=(spec,)))
    e.close()
    e = engine([f"rest:store={good}", "match"])
    e.prepare(Request(prompt(20), 4, use=(f"rest:store={good},nodes=4",)))
    e.close()


# ------------------------------------------------------------------------------------- building


def test_texts_of_every_kind(tmp_path: Path):
    chat = [{"role": "user", "content": "no"}, {"role": "assistant", "content": "three"}]
    lines = [json.dumps("one"), json.dumps({"text": "two"}), "", json.dumps({"messages": chat})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert [t for t, _ in texts(tmp_path / "a.jsonl") if t] == ["one", "two", "three"]
    (tmp_path / "b.txt").write_text("fünf\n" * 400_000, encoding="utf-8")
    pieces = [t for t, _ in texts(tmp_path / "b.txt")]
    assert len(pieces) > 2
    assert "".join(pieces) == "fünf\n" * 400_000
    assert all(p.endswith("\n") for p in pieces if p)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", b'"fine"\n{"text": 3}', "line 2"), ("a.jsonl", b"{", "line 1"),
        ("a.txt", b"\xff\xfe", "UTF-8"), ("a.txt", b"", "no text"), ("a.jsonl", b"[" * 100_000, "line 1"),
    ],
)  # fmt: skip
def test_texts_that_are_refused_leave_nothing(tmp_path: Path, name: str, data: bytes, words: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RequestError, match=words):
        build(tmp_path / "out", [tmp_path / name], byte_tokenizer(), "test")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_command_line(tmp_path: Path, capsys: Any, monkeypatch: Any):
    call = cli.Caller(capsys, monkeypatch)
    text, out = tmp_path / "a.txt", str(tmp_path / "a.store")
    text.write_text("Once upon a time there was a fox. " * 50)
    made = call("datastore", "build", out, str(text), "--json").data
    assert made["bytes"] == Path(out).stat().st_size
    assert made["texts"] == 1
    assert "--force" in call.refused("datastore", "build", out, str(text))
    assert "absent.txt" in call.refused("datastore", "build", out, str(tmp_path / "absent.txt"), "--force")
    assert call("datastore", "build", out, str(text), "--force").out.startswith("wrote ")
    found = call("datastore", "info", out, "--check", "--model", "pronghorn-tiny", "--json")
    assert found.status == 0
    assert found.data["tokens"] == made["tokens"]
    assert found.data["fits"] is True
    stored(tmp_path / "b.store", [[1, 2, 3]])
    other = call("datastore", "info", str(tmp_path / "b.store"), "--model", "pronghorn-tiny")
    assert other.status == 1
    assert "another tokenizer" in other.out
    data = bytearray(Path(out).read_bytes())
    data[-1] ^= 1
    Path(out).write_bytes(data)
    assert "damaged" in call.refused("datastore", "info", out, "--check")
    assert call("datastore", "info", out).status == 0
    for command in ((), ("build",), ("info",)):
        assert "Examples" in call("datastore", *command, "--help").out


# ---------------------------------------------------------------------------------------- REST


def naive_trie(rows: list[list[int]], most: int) -> Counter[tuple[int, ...]]:
    paths = Counter(tuple(row[:n]) for row in rows for n in range(1, len(row) + 1))
    return Counter(dict(sorted(paths.items(), key=lambda x: (-x[1], len(x[0])))[:most]))


def paths_of(token: Any, parent: Any) -> list[tuple[int, ...]]:
    out: list[tuple[int, ...]] = []
    for t, p in zip(token, parent, strict=True):
        assert p < len(out), "a parent comes first"
        out.append((*(out[p] if p >= 0 else ()), int(t)))
    return out


def test_trie_equals_counting():
    r = np.random.default_rng(4)
    for _ in range(200):
        lines = [r.integers(0, 3, int(r.integers(0, 6))).tolist() for _ in range(int(r.integers(1, 40)))]
        rows = np.full((len(lines), 6), -1, np.int32)
        for row, line in zip(rows, lines, strict=True):
            row[: len(line)] = line
        most = int(r.integers(1, 40))
        found = trie(rows, most)
        paths = paths_of(found.token, found.parent)
        want = naive_trie(lines, most)
        every = naive_trie(lines, 10_000)
        assert len(set(paths)) == len(paths) == len(want)
        assert [every[p] for p in paths] == found.times.tolist()
        assert sorted(found.times.tolist()) == sorted(want.values())
        assert all(p[:-1] in paths or len(p) == 1 for p in paths)
        chance = found.chance(0.5)
        assert ((chance > 0) & (chance < 1)).all()


def test_rest_drafts_what_came_most_often(tmp_path: Path):
    path = str(tmp_path / "s")
    lines = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 4], [0, 1, 2, 5, 5]]
    room = DraftRoom(stores={path: stored(Path(path), lines)})
    draft = Rest(store=path).propose([sequence([9, 1, 2])], [2], room)[0]
    assert paths_of(draft.tokens, draft.parent) == [(3,), (4,), (5,), (3, 4), (3, 5), (5, 5)]
    assert draft.score[0] > draft.score[1]
    longest = Rest(store=path).propose([sequence([0, 1, 2])], [2], room)[0]
    assert paths_of(longest.tokens, longest.parent) == [(5,), (5, 5)]
    assert Rest(store=path).propose([sequence([5, 1])], [2], room)[0].n == 0
    assert Rest(store=path).propose([sequence([2])], [2], room)[0].n == 0


# ---------------------------------------------------------------------------------------- ADED


def order_two(seed: int, n_vocab: int) -> np.ndarray:
    """(n_vocab, n_vocab, 8) likeliest tokens after each pair."""
    r = np.random.default_rng(seed)
    return r.permuted(np.tile(np.arange(n_vocab), (n_vocab, n_vocab, 1)), axis=2)[..., :8].astype(np.int32)


def decode(d: Any, top: np.ndarray, start: list[int], n: int, k: int = 6) -> tuple[list[int], list[int]]:
    """Greedy decoding of n tokens; the text, and how many drafted tokens stood in each step."""
    s, stood = sequence(start), []
    while len(s.tokens) < n:
        (draft,) = d.propose([s], [k], DraftRoom())
        check_draft(draft, k, len(top))
        rows = [top[s.tokens[-2], s.tokens[-1]]]
        for i, (t, p) in enumerate(zip(draft.tokens, draft.parent, strict=True)):
            before = s.tokens[-1] if p < 0 else int(draft.tokens[p])
            assert p < i
            rows.append(top[before, t])
        accept = draft.walk(lambda row, rows=rows: int(rows[row][0]))
        s.tokens += [*(int(draft.tokens[i]) for i in accept.path), accept.bonus]
        d.observe([s], [draft], [accept], [{"top8": np.stack(rows)}])
        stood.append(len(accept.path))
    return s.tokens, stood


def test_aded_knows_an_order_two_source_after_one_pass():
    top = order_two(3, 16)
    d = Aded()
    text, first = decode(d, top, [1, 2], 400)
    again, second = decode(d, top, [1, 2], 400)
    assert again[:400] == text[:400]
    assert sum(first) / len(first) < 6
    assert all(n == d.depth for n in second), "a draft fell short although all pairs were seen"


def test_aded_table_is_bounded_and_forgets_the_oldest():
    d, top = Aded(rows=20), order_two(5, 32)
    decode(d, top, [1, 2], 300)
    assert len(d._table) <= 20
    assert all(len(row) <= KEPT for row in d._table.values())
    d._move((40, 41), 1, [1, 2, 3])
    d._move((41, 42), 1, [1, 2, 3])
    for i in range(19):
        d._move((40, 41), i, list(range(i, i + 8)))
        d._move((50, i), 1, [1, 2, 3])
    assert (40, 41) in d._table
    assert (41, 42) not in d._table
    assert len(d._table[40, 41]) == KEPT


def test_aded_learns_from_what_stands_alone():
    d = Aded()
    s = sequence([1, 2])
    top = np.arange(24, dtype=np.int32).reshape(3, 8)
    s.tokens.append(9)
    d.observe([s], [Draft.chain([7, 8])], [Accept([], 9)], [{"top8": top}])
    assert list(d._table) == [(1, 2)]
    assert set(d._table[1, 2]) == {*range(8), 9}
    d.observe([s], [Draft.chain([7])], [Accept([0], 5)], [{"top8": top}])  # the text was cut: not what stands
    assert list(d._table) == [(1, 2)]


def test_search_is_the_same_each_time():
    r = np.random.default_rng(0)
    for _ in range(50):
        rows: dict[tuple[int, int], list[tuple[int, float]]] = {}

        def row(pair: tuple[int, int], rows: Any = rows) -> list[tuple[int, float]]:
            if pair not in rows:
                p = sorted(r.dirichlet(np.ones(5) * 0.3), reverse=True)
                rows[pair] = [(int(t), float(c)) for t, c in zip(r.permutation(8)[:5], p, strict=True)]
            return rows[pair]

        a = search((1, 2), row, 64, 4, 1.0, 12)
        assert a == search((1, 2), row, 64, 4, 1.0, 12)
        paths = paths_of(a.token, a.parent)
        assert len(set(paths)) == len(paths) <= 12
        assert max(map(len, paths)) <= 4
    assert search((1, 2), lambda pair: [], 8, 4, 1.0, 12).token == []


def test_search_goes_where_it_is_likely_and_the_more_it_explores_the_wider():
    row = [(7, 0.6), (8, 0.3), (9, 0.1)]
    narrow, wide = (search((1, 2), lambda pair: row, 64, 5, c, 64) for c in (0.1, 20.0))
    assert paths_of(narrow.token, narrow.parent)[:2] == [(7,), (7, 7)]
    assert sum(p < 0 for p in narrow.parent) < sum(p < 0 for p in wide.parent) == 3
    chain = search((1, 2), lambda pair: [(pair[1] + 1, 0.9)], 64, 5, 1.0, 8)
    assert chain.token == [3, 4, 5, 6, 7]


# ------------------------------------------------------------------------------ token recycling


def test_ranks_are_measured():
    ranks = Ranks(8)
    r = np.random.default_rng(2)
    for _ in range(3000):
        ranks.note(1, int(r.choice(3, p=[0.2, 0.7, 0.1])))
        ranks.note(5, -1)
    assert ranks.chance(1, 1) == pytest.approx(0.7, abs=0.06)
    assert ranks.chance(1, 0) == pytest.approx(0.2, abs=0.06)
    assert ranks.chance(3, 0) < 0.02
    assert ranks.chance(2, 0) == usual(0)


def test_shape_takes_the_likeliest_paths():
    r = np.random.default_rng(6)
    for _ in range(20):
        table = r.random((3, 4))
        got = shape(lambda level, rank, t=table: float(t[level - 1, rank]), 10, 3, 4)
        product: list[float] = []
        for parent, rank, depth in got:
            product.append((product[parent] if parent >= 0 else 1.0) * table[depth - 1, rank])
        every = [
            float(np.prod([table[i, x] for i, x in enumerate(path)]))
            for n in (1, 2, 3) for path in np.ndindex(*([4] * n))
        ]  # fmt: skip
        assert product == pytest.approx(sorted(every, reverse=True)[:10])


def test_an_adaptive_tree_learns_which_rank_is_right():
    """What comes is always the third of the successors in the table, which the static tree hardly drafts."""
    n_vocab = 40
    r = np.random.default_rng(8)
    top = np.stack([r.permutation(n_vocab)[:8] for _ in range(n_vocab)]).astype(np.int32)
    stood = {}
    for adaptive in (False, True):
        d, s = TokenRecycling(adaptive=adaptive, nodes=8), sequence([3])
        total = 0
        for _ in range(400):
            (draft,) = d.propose([s], [6], DraftRoom())
            check_draft(draft, 6, n_vocab)
            rows = top[[s.tokens[-1], *draft.tokens]]
            accept = draft.walk(lambda row, rows=rows: int(rows[row][2]))
            s.tokens += [*(int(draft.tokens[i]) for i in accept.path), accept.bonus]
            d.observe([s], [draft], [accept], [{"top8": rows}])
            total += len(accept.path)
        stood[adaptive] = total / 400
    assert stood[True] > 4 > stood[False]


# ---------------------------------------------------------------------------------------- RASD


def test_follow_equals_a_scan():
    r = np.random.default_rng(11)
    for _ in range(200):
        tokens = r.integers(0, 3, int(r.integers(1, 5))).tolist()
        memory: dict[str, Any] = {}
        for _ in range(5):
            tokens += r.integers(0, 3, int(r.integers(1, 6))).tolist()
            n = len(tokens)
            spans = {}
            for e in range(2, n):
                alike = (x for x in range(2, min(e, 6) + 1) if tokens[e - x : e] == tokens[n - x :])
                spans[e] = max(alike, default=0)
            best = max(spans.values(), default=0)
            span, rows = follow(memory, tokens, 6, 100, 4)
            assert span == best
            ends = [e for e in sorted(spans, reverse=True) if best and spans[e] == best]
            assert rows.tolist() == [[tokens[e + i % (n - e)] for i in range(4)] for e in ends]


def random_tree(r: np.random.Generator) -> Draft:
    """A drafter's tree, with or without scores, some with equal siblings."""
    n = int(r.integers(0, 14))
    parent = np.array([int(r.integers(-1, i)) if i else -1 for i in range(n)], np.int32)
    score = r.random(n) if r.random() < 0.5 else np.zeros(0)
    return Draft(r.integers(0, 4, n).astype(np.int32), parent, score=score)


def test_a_thousand_fusions():
    r = np.random.default_rng(12)
    kept = 0
    for _ in range(1000):
        made = random_tree(r)
        rows = r.integers(0, 4, (int(r.integers(0, 30)), 5)).astype(np.int32)
        for row in rows:
            row[int(r.integers(0, 6)) :] = -1
        tree = Fused(made)
        first = tree.first(int(r.integers(1, 4)))
        found = pruned(rows, first, int(r.integers(1, 12)))
        retrieved = paths_of(found.token, found.parent)
        if made.n:
            assert all(p[0] in first for p in retrieved)
        tree.join(found, 0.5)
        draft = tree.draft()
        check_draft(draft, 99, 4)
        paths = paths_of(draft.tokens, draft.parent)  # asserts that parents come first
        assert len(set(paths)) == len(paths)
        assert set(paths) == {*paths_of(made.tokens, made.parent), *retrieved}
        chance: list[float] = []
        for p, sure in zip(draft.parent, draft.score, strict=True):
            chance.append((chance[p] if p >= 0 else 1.0) * sure)
        assert chance == sorted(chance, reverse=True)
        kept += len(retrieved)
    assert kept > 1000


def test_pruning_by_the_first_token_and_its_chance():
    rows = np.array([[1, 5], [1, 5], [1, 6], [2, 7], [3, 8], [3, 8], [3, 8]], np.int32)
    assert paths_of(*pruned(rows, {1: 0.1, 2: 0.9}, 9)[:2]) == [(1,), (1, 5), (2,), (1, 6), (2, 7)]
    assert paths_of(*pruned(rows, {1: 0.1, 2: 0.9}, 2)[:2]) == [(2,), (2, 7)]
    assert paths_of(*pruned(rows, {}, 2)[:2]) == [(1,), (3,)]
    assert paths_of(*pruned(rows, {9: 0.5}, 9)[:2]) == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rest(store="x", max_span=99), "max_span"), (lambda: Rest(store="x", nodes=0), "nodes"),
        (lambda: Rest(store="x", min_span=17), "min_span"), (lambda: Aded(depth=0), "depth"),
        (lambda: Aded(explore=0.0), "explore"), (lambda: Rasd(first=0), "first"),
        (lambda: Rasd(drafter="rasd"), "makes its own"), (lambda: Rasd(drafter="nonesuch"), "nonesuch"),
        (lambda: Rasd(drafter="prompt-lookup:lenth=3"), "length"),
    ],
)  # fmt: skip
def test_options_out_of_range(make: Any, words: str):
    with pytest.raises(MethodError, match=words):
        make()


# --------------------------------------------------------------------------------- whole answers

M, N = 10, 48  # prompts, tokens of each answer


@pytest.fixture(scope="module")
def plain() -> dict[float, list[list[int]]]:
    return {t: answers([], prompts(M), N, t)[0] for t in (0.0, 0.8)}


@pytest.fixture(scope="module")
def corpora(plain: dict[float, list[list[int]]], tmp_path_factory: Any) -> dict[str, Path]:
    """Datastores: what the model writes; and the same where every fifth token is another one."""
    folder = tmp_path_factory.mktemp("stores")
    tokenizer = LLM(backend="ref").tokenizer
    out = {}
    for name, step in (("right", 0), ("wrong", 5)):
        lines = [[*line] for line in plain[0.0]]
        if step:
            lines = [[(t + 1) % 256 if i % step == step - 1 else t for i, t in enumerate(x)] for x in lines]
        tokens = np.concatenate([[*line, end(2)] for line in lines]).astype(np.uint16)
        out[name] = folder / name
        write(out[name], tokens, len(lines), tokenizer, "pronghorn-tiny")
    return out


SPECS = {
    "rest": "rest:store={right}", "rest of wrong texts": "rest:store={wrong},nodes=32", "aded": "aded",
    "adaptive": "token-recycling:adaptive=true", "rasd": "rasd", "rasd of both": "rasd:store={right}",
    "rasd of wrong texts": "rasd:store={wrong},drafter=aded",
}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_those_of_plain_decoding(plain: Any, corpora: Any, name: str, temperature: float):
    got, accepted, steps = answers([SPECS[name].format(**corpora)], prompts(M), N, temperature)
    assert got == plain[temperature]
    assert accepted > 0, "the drafter never helped: the test compares nothing"
    assert steps < M * N


def test_a_datastore_of_the_answers_saves_most_steps(corpora: Any):
    _, _, steps = answers([SPECS["rest"].format(**corpora)], prompts(M), N)
    assert steps < M * N / 4


def test_fusion_is_no_worse_than_its_parts_on_copies():
    copies = [p for p in prompts(40) if p.startswith(("Copy", "Rename"))]
    steps = {
        use: answers([use], copies, N)[2] for use in ("token-recycling", "prompt-lookup:max_ngram=16", "rasd")
    }
    assert steps["rasd"] <= min(steps.values())


def test_magic_is_eight_bytes():
    assert len(MAGIC) == 8
    assert SIZE % 8 == 0
