"""`pronghorn bench kv`: tasks that can be answered, talks that go as written, figures counted right."""

from __future__ import annotations

import json
import math
import re
import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli import TINY, Caller

from pronghorn.bench import kv_compare, kv_tasks, lookups
from pronghorn.bench.kv import Record, Result, record_of, wilson
from pronghorn.bench.kv_compare import Comparison, graded
from pronghorn.bench.kv_methods import PLAIN, SHARES, Entry, entries, everything
from pronghorn.bench.kv_report import pages
from pronghorn.bench.kv_run import Heard, Reading, Script, hold
from pronghorn.bench.kv_tasks import CHATS, LOOKUPS, TEXTS, Talk, Turn, kinds, make
from pronghorn.bench.prompts import AbsentError
from pronghorn.compose import compose, names
from pronghorn.errors import RequestError
from pronghorn.llm import LLM
from pronghorn.model.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "tests" / "models" / "lookup"
LENGTH = 640
NOBODY = (lambda *a: None, lambda: None)  # who is told, and what is saved


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    return Caller(capsys, monkeypatch)


@pytest.fixture(scope="module")
def words():
    return load_tokenizer(MODEL, {})


@pytest.fixture(scope="module")
def chats():
    return load_tokenizer(TINY, {})


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    made = LLM(MODEL, threads=1, defaults=("match", "fcfs"))
    yield made
    made.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "wikitext2" / "test.txt").write_text("The quick brown fox saw the lazy dog .\n" * 400)
    (tmp_path / "gsm8k").mkdir()
    rows = [{"question": f"What is {i} and 1000?", "answer": f"It is\n#### 1,0{i:02}"} for i in range(5)]
    (tmp_path / "gsm8k" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


# ------------------------------------------------------------------------------- tasks


def test_each_model_is_asked_what_it_understands(words, chats):
    assert kinds(words) == tuple(LOOKUPS)
    assert kinds(chats) == (*CHATS, *TEXTS)


@pytest.mark.parametrize("kind", LOOKUPS)
def test_look_ups_take_the_length_that_was_asked_for(kind, words):
    task = make(kind, words, LENGTH, 3, Path())
    assert len(task.items) == (1 if kind == "decode" else 3)
    assert task.items == make(kind, words, LENGTH, 3, Path()).items
    for item in task.items:
        for talk in item:
            assert len(task.names) == len(talk.turns)
            said = sum(len(t.ask) + len(t.answer.split()) + (t.limit > 0) for t in talk.turns)
            assert LENGTH - 10 <= len(talk.ids) + said <= LENGTH
            assert talk.ids[0] == lookups.BEGIN


def test_the_text_of_a_look_up_has_the_answers(words):
    ((talk,),) = make("kv", words, LENGTH, 1, Path()).items
    text = words.decode(list(talk.ids))
    assert text.endswith(f"? {text.split()[-1]}")
    keys = [text.split()[-1], *(words.decode(list(t.ask)).split()[-1] for t in talk.turns[1:])]
    assert len(set(keys)) == 4
    for key, turn in zip(keys, talk.turns, strict=True):
        assert f"{key} {turn.answer} ;" in text


def test_requests_have_the_text_and_no_question_as_their_prompt(words):
    for one, two in make("kv-requests", words, LENGTH, 2, Path()).items:
        assert one.ids == two.ids
        assert one.turns != two.turns
        assert lookups.ASK not in one.ids


def test_a_long_answer_is_judged_by_what_the_text_answers(words):
    ((talk,),) = make("decode", words, LENGTH, 1, Path()).items
    (turn,) = talk.turns
    assert len(talk.ids) == LENGTH // 4
    assert not turn.limit
    judged = [turn.ask[j] for j in talk.judged]
    assert judged.count(lookups.STOP) > 20
    assert lookups.ASK not in judged
    text = words.decode(list(talk.ids))
    at = turn.ask.index(lookups.ASK)
    key, first, second = (lookups.VOCABULARY[i] for i in turn.ask[at + 1 : at + 4])
    assert f"{key} {first} {second} ;" in text
    assert at + 2 in talk.judged


@pytest.mark.parametrize("kind", ["needle", "registry", "registry-requests"])
def test_passages_fill_the_length(kind, chats):
    task = make(kind, chats, 300, 2, Path())
    assert task.rows == 300
    for item in task.items:
        for talk in item:
            room = len(talk.ids) + sum(len(t.ask) + t.limit for t in talk.turns)
            assert 200 < room <= 300
            said = chats.decode(list(talk.ids))
            assert all(t.answer in said for t in talk.turns)
            assert talk.end in chats.eos
    assert {len(talk.turns) for item in task.items for talk in item} == {len(task.names)}


def test_texts_come_from_a_folder(chats, data, tmp_path):
    task = make("wikitext", chats, 128, 2, data)
    for (talk,) in task.items:
        assert (len(talk.ids), len(talk.turns[0].ask), len(talk.judged)) == (32, 96, 96)
    problems = make("gsm8k", chats, 512, 3, data)
    assert [t.turns[0].answer for (t,) in problems.items] == ["1000", "1001", "1002"]
    assert problems.grade("first 3, then 1,002.", "1002") == 1.0
    with pytest.raises(AbsentError, match="--data"):
        make("wikitext", chats, 128, 2, tmp_path / "nowhere")
    with pytest.raises(AbsentError, match="more than"):
        make("gsm8k", chats, 128, 2, data)


@pytest.mark.parametrize(("kind", "least"), [("kv", 213), ("copy", 500), ("decode", 160)])
def test_a_length_that_is_too_short_is_told(kind, least, words):
    with pytest.raises(AbsentError, match="tokens or more"):
        make(kind, words, least - 1, 1, Path())


def test_grades():
    assert kv_tasks.words("a b x d", "a b c d") == 0.75
    assert kv_tasks.words("", "a b") == 0.0
    assert kv_tasks.values("north a east b", "north a east c") == 0.5
    assert kv_tasks.holds("It is 4821.", "4821") == 1.0
    assert kv_tasks.whole("a b c", "a b") == 0.0


# ------------------------------------------------------------------------------- talks

END = 9


def test_a_script_asks_waits_and_cuts_short():
    script = Script((Turn((), 3), Turn((5, 6), 2)), END)
    assert script.forced() == []
    script.advance([1, END])
    assert script.forced() == [5, 6]
    out = np.zeros(10, bool)
    script.mask(out)
    assert np.flatnonzero(out).tolist() == [5]
    script.advance([5, 6, 1, 2])
    assert script.forced() == [END]  # the answer was allowed two tokens
    assert script.place() == ((END,), 0, [[1], [1, 2]], False)
    script.advance([END])
    assert script.place().over
    script.rollback(1)
    script.rollback(1)
    assert script.forced() == []
    script.advance([END])
    assert script.place() == ((), 0, [[1], [1]], True)
    assert script.fork().place() == script.place()


def test_a_script_allows_nothing_but_what_it_asks():
    """Whoever looks at the model's own choice first asks whether it is allowed."""
    script = Script((Turn((), 3), Turn((5, 6), 2)), END)
    assert script.advance([1, END, 7]) == 2
    assert script.advance([5, 7, 6]) == 1
    assert script.forced() == [6]


def test_a_text_is_said_token_by_token():
    script = Script((Turn((4, 5, 6)),), -1)
    script.advance([4])
    assert script.forced() == [5, 6]
    script.advance([5, 6])
    assert script.place() == ((), 0, [], True)


def test_the_model_is_asked_in_turns(llm, words):
    task = make("kv", words, LENGTH, 10, Path())
    reading = Reading()
    heard = hold(llm, [t for (t,) in task.items], reading)
    scores = graded(words, task, heard)
    assert list(scores) == ["kv", "kv-2q", "kv-turns"]
    assert all(np.mean(x) >= 0.9 for x in scores.values())
    row = llm.engine.store.row_bytes
    for h, (talk,) in zip(heard, task.items, strict=True):
        assert len(h.answers) == 4
        assert row * len(talk.ids) <= h.held <= 1.1 * row * (len(talk.ids) + 16)
        assert h.end >= h.held
    assert 0.9 * row * LENGTH < reading.bytes / reading.rows < 1.2 * row * LENGTH
    assert llm.engine.store.held == 0


def test_probabilities_of_a_said_text_are_those_of_its_score(llm, words):
    ((talk,),) = make("decode", words, 256, 1, Path()).items
    (h,) = hold(llm, [talk], Reading())
    whole = words.decode([*talk.ids, *talk.turns[0].ask])
    assert h.logprobs == pytest.approx(llm.score(whole)[len(talk.ids) - 1 :], abs=1e-4)
    assert not h.answers


def test_an_answer_that_never_ends_is_cut(llm, words):
    ids = (lookups.BEGIN, *(lookups.ID[w] for w in ["the", "fox", "walked"]))
    (h,) = hold(llm, [Talk(ids, (Turn((), 4, "x"), Turn((lookups.ASK,), 2, "y")), lookups.END)], Reading())
    assert [len(a) for a in h.answers] == [4, 2]


# ------------------------------------------------------------------------------- methods


def test_all_methods_take_part_with_budgets_that_they_accept():
    found = everything()
    assert {"snapkv", "h2o", "adakv", "streaming-llm", "kvfmt.int8", "select.quest"} <= set(found)
    assert "kvfmt.bf16" not in found
    assert len([n for n in found if not n.startswith(("kvfmt.", "select."))]) == len(names()["kv"])
    for entry in entries(found, [], SHARES):
        for rows in (256, 1024):
            compose(entry.use(rows))


def test_budgets_are_shares_of_the_rows():
    assert Entry("snapkv", 8).use(1024) == ("kv.snapkv:budget=128,window=16",)
    assert Entry("streaming-llm", 4).use(1024) == ("kv.streaming-llm:window=252,every=32",)
    assert Entry("adakv", 2).use(256) == ("kv.adakv:policy='snapkv:budget=128,window=16'",)
    assert Entry("select.quest", 4).use(256) == ("select.quest:tokens=64,dense_layers=0",)
    assert Entry("kvfmt.int8").use(256) == ("kvfmt.int8",)
    assert Entry(PLAIN).use(256) == ()
    given = entries(["plain", "h2o"], ["tova:budget=9 kvfmt.int8"], [4])
    assert [(e.name, e.share) for e in given] == [("plain", 0), ("h2o", 4), ("tova:budget=9 kvfmt.int8", 0)]
    assert given[2].use(99) == ("tova:budget=9", "kvfmt.int8")
    with pytest.raises(RequestError, match="neither"):
        entries(["prompt-lookup"], [], [4])


# ------------------------------------------------------------------------------- figures


def result(task: str = "kv", method: str = PLAIN, share: int = 0, right: int = 4, **more) -> Result:
    scores = (1.0,) * right + (0.0,) * (4 - right)
    made = Result(task, method, share, (), scores, False, 100.0, 1000.0, 1100.0, 900.0)
    return replace(made, **more)


def test_wilson_s_intervals():
    low, high = wilson(98, 100)
    assert (round(low, 3), round(high, 3)) == (0.930, 0.994)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert wilson(50, 100)[0] < 0.5 < wilson(50, 100)[1]


def test_figures_follow_from_scores():
    r = result(right=3)
    assert r.figure == 0.75
    assert r.interval == wilson(3, 4)
    text = replace(r, perplexity=True, scores=(math.log(2.0), math.log(8.0)))
    assert text.figure == pytest.approx(4.0)
    assert text.interval[0] < 4.0 < text.interval[1]
    assert (r.bytes, text.bytes) == (1000.0, 1100.0)


def small() -> Record:
    made = Record({"processor": "x"}, "m", 100, 4, 1)
    made.results = [
        result(),
        result("decode", perplexity=True, scores=(0.5, 0.7)),
        result(method="good", share=4, right=3, held=250.0),
        result(method="bad", share=4, right=1, held=250.0, read=450.0),
        result(method="packed", held=500.0),
    ]
    made.skipped = {"gsm8k": "no data"}
    return made


def test_a_record_is_read_back():
    one = small()
    data = json.loads(json.dumps(one.data()))
    assert record_of(data) == one
    assert data["results"][2]["held_of_plain"] == 0.25
    assert one.same(replace(one, results=[]))
    assert not one.same(replace(one, length=99))
    assert one.shares == [0, 4]


def test_tables_of_a_page():
    made = pages(small())
    assert set(made) == {"plain", "none", "1/4"}
    lines = [[c.strip() for c in x.split("|")[1:-1]] for x in made["1/4"].splitlines()]
    assert lines[0] == ["method", "kv", "decode", "mean", "held", "read"]
    assert [x[0] for x in lines[2:]] == ["good", "bad"]
    assert lines[3][2:] == ["–", "25", "0.250", "0.500"]
    assert "gsm8k is left out: no data" in made["plain"]


def test_the_page_wants_tables_that_its_script_makes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    script = runpy.run_path(str(ROOT / "bench" / "kv.py"))
    text = (ROOT / "docs" / "kv.md").read_text(encoding="utf-8")
    wanted = re.findall(r"<!-- table: (.+?) -->\n", text)
    parts = ("plain", "none", *(f"1/{n}" for n in SHARES))
    assert wanted
    assert set(wanted) <= {"kvpress", *script["SPEED"], *(f"{r} {p}" for r in script["RUNS"] for p in parts)}
    for name in [*sys.modules]:
        if name in ("_report", "_kvpress", "_attention", "kv_speed"):
            del sys.modules[name]


# ------------------------------------------------------------------------------- the comparison


def test_choosing_by_the_question_finds_what_it_looked_at_and_loses_the_rest(words):
    """At an eighth of the rows SnapKV answers the question of its window and not one that comes later; the
    latest rows answer neither."""
    record = Record({}, str(MODEL), LENGTH, 12, 1)
    asked = entries(["snapkv", "streaming-llm", "kvfmt.int8"], [], [8])
    Comparison(record, str(MODEL), Path(), *NOBODY).run(asked, ["kv"])
    share = {(r.method, r.task): r.figure for r in record.results}
    assert share[PLAIN, "kv"] >= 0.9
    assert share["kvfmt.int8", "kv"] >= 0.9
    assert share["snapkv", "kv"] >= 0.7
    assert share["snapkv", "kv-2q"] <= 0.5
    assert share["streaming-llm", "kv"] <= 0.5
    for r in record.results:
        if r.share:
            assert record.held(r) < 1 / 8 + 0.06
            assert record.read(r) < 1 / 8 + 0.1


@pytest.mark.skipif("random" not in names()["kv"], reason="there is no control in the slot")
def test_rows_by_lot_lose_what_choosing_keeps():
    record = Record({}, str(MODEL), LENGTH, 12, 1)
    Comparison(record, str(MODEL), Path(), *NOBODY).run(entries(["random"], [], [8]), ["kv"])
    plain, control = (r.figure for r in record.results if r.task == "kv")
    assert control <= plain - 0.3


def test_what_is_there_is_not_measured_again(monkeypatch):
    record = Record({}, str(MODEL), 256, 2, 1)
    compare = Comparison(record, str(MODEL), Path(), *NOBODY)
    compare.run(entries([], [], []), ["vt"])
    before = list(record.results)
    monkeypatch.setattr(kv_compare, "hold", lambda *a: pytest.fail("measured again"))
    Comparison(record, str(MODEL), Path(), *NOBODY).run(entries([], [], []), ["vt"])
    assert record.results == before


def test_nothing_is_compared_where_nothing_can_be_lost(monkeypatch):
    record = Record({}, str(MODEL), 256, 2, 1)
    wrong = [Heard([[1]], held=10, end=10)] * 2
    monkeypatch.setattr(kv_compare, "hold", lambda *a: wrong)
    Comparison(record, str(MODEL), Path(), *NOBODY).run(entries(["h2o"], [], [4]), ["vt"])
    assert {r.method for r in record.results} == {PLAIN}
    assert "answers 0 of 2" in record.skipped["vt"]


def test_a_method_that_cannot_run_is_told_unless_it_was_asked_for():
    record = Record({}, str(MODEL), 256, 1, 1)
    compare = Comparison(record, str(MODEL), Path(), *NOBODY)
    compare.run([Entry(PLAIN), Entry("snapkv", 256)], ["vt"])
    assert "budget is above window" in record.failed["snapkv 1/256"]


# ------------------------------------------------------------------------------- the command


def test_the_command_measures_and_goes_on(call: Caller, tmp_path: Path):
    file = tmp_path / "kv.json"
    ask = (
        "bench",
        "kv",
        str(MODEL),
        "--length",
        "256",
        "--items",
        "2",
        "--threads",
        "1",
        "--json",
        str(file),
    )
    told = call(*ask, "--task", "kv", "--use", "snapkv:budget=32,window=8 kvfmt.int8")
    assert told.status == 0, told
    for part in ("kv-2q: right answers", "snapkv:budget=32,window=8 kvfmt.int8", "of plain", "95 % interval"):
        assert part in told.out
    first = record_of(json.loads(file.read_text()))
    told = call(*ask, "--task", "kv", "--task", "vt", "--method", "h2o", "--budget", "4", "--resume")
    assert told.status == 0, told
    second = record_of(json.loads(file.read_text()))
    assert second.results[: len(first.results)] == first.results
    assert {(r.task, r.method, r.share) for r in second.results} >= {("vt", "h2o", 4), ("kv-turns", "h2o", 4)}
    refused = call.refused(*ask[:4], "128", *ask[5:], "--resume")
    assert "another model, length" in refused


def test_what_was_measured_is_kept_when_it_is_stopped(call: Caller, tmp_path: Path, monkeypatch):
    from pronghorn.bench.kv_compare import hold as real

    seen: list[int] = []

    def stopped(*a):
        seen.append(1)
        if len(seen) > 1:
            raise KeyboardInterrupt
        return real(*a)

    monkeypatch.setattr(kv_compare, "hold", stopped)
    file = tmp_path / "kv.json"
    told = call(
        "bench", "kv", str(MODEL), "--length", "256", "--items", "1", "--task", "vt", "--method", "h2o",
        "--threads", "1", "--json", str(file),
    )  # fmt: skip
    assert told.status == 130
    assert "Stopped" in told.out
    assert [r.method for r in record_of(json.loads(file.read_text())).results] == [PLAIN]


def test_what_makes_no_sense_is_refused(call: Caller):
    assert "no task" in call.refused("bench", "kv", "--task", "x")
    assert "no method" in call.refused("bench", "kv", "--method", "x")
    assert "no option" in call.refused("bench", "kv", "--use", "h2o:x=1")
    assert "context" in call.refused("bench", "kv", "--length", "5000")
    assert "name it" in call.refused("bench", "kv", "--resume")
