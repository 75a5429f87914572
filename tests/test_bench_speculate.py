"""`pronghorn bench speculate`: prompts of every kind, promises that are checked, figures counted right."""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cli import Caller

from pronghorn.bench import answers, prompts
from pronghorn.bench.answers import Asked, Ours, Peer, drafters
from pronghorn.bench.engines import CannotError, Launch
from pronghorn.bench.gains import PLAIN, Record, Result, Sample, record_of, together
from pronghorn.bench.gains_report import pages
from pronghorn.bench.peers import SCRIPTS, WAYS, speculating
from pronghorn.bench.prompts import MADE, NAMES, SPEC, AbsentError, category
from pronghorn.bench.speculate import Race
from pronghorn.errors import RequestError
from pronghorn.llm import DEFAULT_MODEL, LLM
from pronghorn.seq import Request
from pronghorn.types import Accept

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("--rounds", "1", "--prompts", "2", "--batch", "2", "--tokens", "12", "--threads", "1")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    return Caller(capsys, monkeypatch)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder like Spec-Bench's, four questions of each kind."""
    lines = []
    for kind in {k for kinds in SPEC.values() for k in kinds}:
        for i in range(4):
            turns = [f"{kind} question {i}?"]
            if kind == "rag":
                turns = ["a passage " * 300 + f"\nWho is number {i}?"]
            if kind in prompts.FIRST:
                turns.append(f"And {i} again?")
            lines.append(json.dumps({"category": kind, "turns": turns, "question_id": i}))
    (tmp_path / "spec_bench").mkdir()
    (tmp_path / "spec_bench" / "question.jsonl").write_text("\n".join(lines))
    return tmp_path


# ------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("name", MADE)
def test_prompts_made_here_differ_and_follow_from_the_seed(name: str):
    found = category(name, 80, 0, Path())
    assert len({q.turns for q in found.questions}) == 80
    assert found.questions == category(name, 80, 0, Path()).questions
    assert found.questions != category(name, 80, 1, Path()).questions
    assert all(40 < len(t) < 1000 for q in found.questions for t in q.turns)


def test_what_is_renamed_is_in_the_code():
    for q in category("renaming", 20, 0, Path()).questions:
        asked = re.fullmatch(r"Rename (\w+) to (\w+):\n(.*)", q.turns[0], re.S)
        assert asked
        assert re.search(rf"\b{asked[1]}\b", asked[3])
        assert "def " in asked[3]


def test_questions_of_spec_bench(data: Path):
    first = category("mt-bench", 8, 0, data)
    assert [len(q.turns) for q in first.questions] == [2] * 4  # two turns are two prompts
    for q in category("rag", 4, 0, data).questions:
        assert len(q.turns[0]) <= prompts.LONGEST + 1
        assert re.search(r"passage.*\nWho is number \d\?$", q.turns[0])
    with pytest.raises(AbsentError, match="4 prompts and 5"):
        category("qa", 5, 0, data)
    with pytest.raises(AbsentError, match="--data"):
        category("qa", 1, 0, data / "elsewhere")
    with pytest.raises(RequestError, match="copying"):
        category("nonsense", 1, 0, data)


def test_default_drafters_need_no_other_model():
    found = drafters()
    assert {"prompt-lookup", "token-recycling"} <= set(found)
    assert "auto" not in found or found[0] == "auto"
    assert "draft-model" not in found


# ------------------------------------------------------------------------------- figures


def result(name: str = "code") -> Result:
    plain = [Sample(i, 100, 1.0, 110, 2.0, steps=100) for i in range(3)]
    fast = [Sample(i, 100, s, 110, 1.5, steps=50, rows=220) for i, s in enumerate((0.5, 0.4, 1.0))]
    auto = [Sample(i, 100, 0.5, 110, 1.5, steps=50, rows=110) for i in range(3)]
    return Result(name, 1, 0.0, {PLAIN: plain, "fast": fast, "auto": auto})


def record(*results: Result) -> Record:
    made = Record({"processor": "x"}, "m", (), 2, 3, 4, 96, 0, drafters={"auto": "exact", "fast": "exact"})
    made.results = list(results)
    return made


def test_ratios_are_of_rounds():
    r = result()
    assert (r.ratio("fast").median, r.ratio("fast").low, r.ratio("fast").high) == (2.0, 1.0, 2.5)
    assert r.rate(PLAIN).median == 100.0
    assert r.whole("fast").median == pytest.approx(2.0 / 1.5)
    assert r.length("fast") == pytest.approx(110 / 50)
    assert r.rows("fast") == 2.0
    assert record(r).best(r) == "fast"
    assert record(r).auto(r) == "auto"


def test_all_categories_together_add_tokens_and_seconds():
    slow = result("qa")
    slow.samples["fast"] = [replace(s, seconds=3 * s.seconds) for s in slow.samples["fast"]]
    del slow.samples["auto"]
    both = together([result(), slow])
    assert set(both.samples) == {PLAIN, "fast"}
    assert both.samples["fast"][0] == Sample(0, 200, 2.0, 220, 3.0, 100, 440)
    assert both.ratio("fast").median == 1.0


def test_a_record_is_read_back():
    one = record(result(), result("qa"))
    one.results[0].wrong = ["fast"]
    one.results[0].differ = {"fast": 3}
    again = record_of(json.loads(json.dumps(one.data())))
    assert again == one
    assert one.wrong == ["fast changed 3 answers of code at batch 1, temperature 0"]
    assert one.data()["results"][0]["speeds"]["fast"]["of_plain"]["median"] == 2.0


def test_tables_of_a_page():
    one = record(result(), result("qa"))
    one.peers = {"peer": "1.0", "peer lookup": "1.0"}
    for r in one.results:
        r.samples["peer"] = r.samples[PLAIN]
        r.samples["peer lookup"] = [replace(s, seconds=0.8) for s in r.samples[PLAIN]]
    made = pages(one)
    assert set(made) == {"speed", "steps", "peers"}
    lines = [[c.strip() for c in x.split("|")[1:-1]] for x in made["speed"].splitlines() if x[:1] == "|"]
    assert lines[0] == ["drafter", "code", "qa", "all", "slowest round"]
    assert lines[2:] == [
        ["auto", "2.00", "2.00", "2.00", "2.00"],
        ["fast", "2.00", "2.00", "2.00", "1.00"],
        ["auto over the best", "1.00", "1.00", "1.00", "1.00"],
    ]
    assert "2.20 / 2.0" in made["steps"]
    assert "1.60 (1.60 to 1.60)" in made["peers"]  # auto's 200 tokens/s against the peer's 125


def test_the_page_wants_tables_that_its_script_makes():
    sys.path.insert(0, str(ROOT / "bench"))
    runs = runpy.run_path(str(ROOT / "bench" / "speculation.py"))["RUNS"]
    text = (ROOT / "docs" / "speculation.md").read_text(encoding="utf-8")
    wanted = re.findall(r"<!-- table: (.+?) -->\n", text)
    assert wanted
    for name in wanted:
        kind, run = name.split()
        assert kind in ("speed", "steps", "peers")
        assert run in runs
        assert kind != "peers" or "--against" in runs[run]


def test_a_widened_model_answers_as_the_small_one(tmp_path):
    """Three times the bundled drafter's width and a layer more: the same logits, up to the order of sums."""
    widen = runpy.run_path(str(ROOT / "bench" / "widen.py"))["widen"]
    small = ROOT / "pronghorn" / "bundled" / "pronghorn-tiny-draft"
    widen(small, tmp_path, times=3, layers=3)
    said = []
    for model in (small, tmp_path):
        llm = LLM(str(model), backend="ref64")
        ids = tuple(llm.tokenizer.encode("The quick brown fox jumps over the lazy dog."))
        said += llm.engine.submit(Request(ids, 12, 0.0, 0, logprobs=True))
        while llm.engine.busy:
            llm.engine.step()
        llm.close()
    assert said[0].tokens == said[1].tokens
    assert said[0].logprobs == pytest.approx(said[1].logprobs, abs=1e-4)
    with pytest.raises(SystemExit, match="--layers"):
        widen(small, tmp_path / "less", times=1, layers=1)


# ------------------------------------------------------------------------------- the race


def ask(one: Ours, n: int = 1) -> Asked:
    cat = category("copying", n, 0, Path())
    ids = [one.llm.tokenizer.chat([{"role": "user", "content": q.turns[0]}]) for q in cat.questions]
    return Asked(ids, cat, 24, 0.0, 0, ())


def test_a_drafter_forgets_between_cells():
    one = Ours(DEFAULT_MODEL, (), "token-recycling", 1)
    one.begin()
    before = one._use[0]
    one.answer(ask(one))
    assert (before._table.rows >= 0).any()
    one.begin()
    assert not (one._use[0]._table.rows >= 0).any()
    assert one.llm.engine.store.held == 0
    one.close()


def test_answers_are_counted():
    plain, fast = (Ours(DEFAULT_MODEL, (), d, 1) for d in ("", "prompt-lookup"))
    got = []
    for one in (plain, fast):
        one.begin()
        got.append(one.answer(ask(one, 3)))
    a, b = got
    assert a.answers == b.answers
    assert len(a.answers) == 3
    new = sum(map(len, a.answers))
    assert a.steps == new  # one token a step and sequence
    assert b.steps < new
    assert (a.rows, a.by) == (0, {})
    drafted, accepted = b.by["prompt-lookup"]
    assert new == b.steps + accepted
    assert b.rows >= drafted >= accepted > 0
    assert 0 < a.tokens < new
    assert a.tokens == new - 3
    assert 0 < a.seconds < a.whole
    for one in (plain, fast):
        one.close()


def test_a_second_turn_stands_after_plain_decoding_s_answer(data: Path):
    of = Record({}, DEFAULT_MODEL, (), 1, 1, 1, 8, 0)
    with Race(of, data, lambda *a: None) as race:
        race.start(DEFAULT_MODEL, [], [])
        _, (first, second, *_) = race._category("mt-bench")
        llm = race._plain.llm
        reply = llm.engine.run([_request(first)])[0][0].new
        asked = category("mt-bench", 2, 0, data).questions[0].turns
    assert llm.tokenizer.decode(second).startswith(llm.tokenizer.decode(first))
    assert llm.tokenizer.decode(second) == asked[0] + llm.tokenizer.decode(reply) + asked[1]


def _request(ids: list[int]) -> object:
    from pronghorn.seq import Request

    return Request(tuple(ids), 8)


# ------------------------------------------------------------------------------- the command


def test_the_command_measures_and_writes(call: Caller, tmp_path: Path, data: Path):
    file = tmp_path / "out.json"
    told = call(
        "bench", "speculate", *SMALL, "--draft", "prompt-lookup:length=6", "--temperature", "0",
        "--temperature", "0.8", "--category", "copying", "--category", "json-schema", "--category", "qa",
        "--category", "math", "--data", str(data), "--json", str(file),
    )  # fmt: skip
    assert told.status == 0, told
    for part in ("Batch 2, temperature 0.8", "prompt-lookup:length=6", "tokens a step", "copying"):
        assert part in told.out
    out = record_of(json.loads(file.read_text()))
    assert {(r.category, r.temperature) for r in out.results} == {
        (c, t) for c in ("copying", "json-schema", "qa", "math") for t in (0.0, 0.8)
    }
    for r in out.results:
        assert set(r.samples) == {PLAIN, "prompt-lookup:length=6"}
        assert [len(s) for s in r.samples.values()] == [1, 1]
        assert not r.differ
    copying = out.results[0]
    assert copying.length(PLAIN) == 1.0
    assert copying.length("prompt-lookup:length=6") > 1.0
    assert "forced" in next(r for r in out.results if r.category == "json-schema").drafters[PLAIN]


def test_a_changed_token_ends_it_with_an_error(call: Caller, monkeypatch: pytest.MonkeyPatch):
    """The check can fail: here the verifier believes every draft."""
    from pronghorn.methods.verify.match import Match

    def believe(self: Match, p: object, draft: object) -> Accept:
        path = []
        while True:
            children = [i for i in range(draft.n) if draft.parent[i] == (path[-1] if path else -1)]  # type: ignore[attr-defined]
            if not children:
                return Accept(path, p.draw(path[-1] + 1 if path else 0))  # type: ignore[attr-defined]
            path.append(children[0])

    monkeypatch.setattr(Match, "verify", believe)
    told = call("bench", "speculate", *SMALL, "--draft", "prompt-lookup", "--category", "free-text")
    assert told.status == 1
    assert "BROKEN PROMISE: prompt-lookup changed" in told.out


def test_categories_without_data_are_left_out(call: Caller, tmp_path: Path):
    told = call(
        "bench", "speculate", *SMALL, "--draft", "prompt-lookup", "--category", "rag", "--category",
        "json", "--data", str(tmp_path), "--temperature", "0",
    )  # fmt: skip
    assert told.status == 0, told
    assert "rag is left out" in told.out
    assert "json" in told.out


def test_an_interrupted_run_says_what_it_has(call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = Ours.answer
    calls = []

    def stop(self: Ours, asked: Asked) -> answers.Answered:
        calls.append(asked.category.name)
        if calls.count("json") == 3:  # in the counted round, when one of two has answered
            raise KeyboardInterrupt
        return whole(self, asked)

    monkeypatch.setattr(Ours, "answer", stop)
    file = tmp_path / "out.json"
    told = call(
        "bench", "speculate", *SMALL, "--draft", "prompt-lookup", "--category", "copying", "--category",
        "json", "--temperature", "0", "--json", str(file),
    )  # fmt: skip
    assert told.status == 130
    assert "Stopped" in told.out
    kept = record_of(json.loads(file.read_text()))
    assert [bool(r.samples) for r in kept.results] == [True, False]


def test_wrong_arguments_are_refused(call: Caller, tmp_path: Path):
    say = ("bench", "speculate")
    assert "no category called 'x'" in call.refused(*say, "--category", "x")
    assert "no method" in call.refused(*say, "--draft", "nonsense")
    assert "whole batches" in call.refused(*say, "--batch", "4", "--prompts", "6")
    assert "choose one" in call.refused(*say, "pronghorn-tiny", "--shape", "smollm2-135m")
    assert "cannot be written" in call.refused(*say, "--json", "/nowhere/at/all.json")
    assert "that speculates" in call.refused(*say, "--against", "vllm")
    assert "build.py" in call.refused(*say, "--against", "openvino", "--peers", str(tmp_path))
    assert "context" in call.refused(
        *say, "--quick", "--category", "json", "--tokens", "5000", "--draft", "prompt-lookup"
    )


def test_help_has_examples_and_every_category(call: Caller):
    told = call("bench", "speculate", "--help")
    assert told.status == 0
    assert "Examples" in told.out
    shown = re.sub(r"[\s│]+", " ", told.out)
    assert all(name in shown for name in NAMES)


# ------------------------------------------------------------------------------- peers

DRIVER = """
class Driver:
    def prepare(self, model, precision, cache):
        pass
    def load(self, model, use, precision, threads, cache):
        self.use = use
        return {"version": "7"}
    def prefill(self, n):
        return 0.1
    def answer(self, prompts, tokens, temperature, seed, stop):
        if len(prompts) > 1:
            raise NotImplementedError("one at a time")
        seconds = 0.5 if self.use == ["lookup"] else 1.0
        answers = [[p[0]] * tokens for p in prompts]
        return {"answers": answers, "tokens": tokens - 1, "seconds": seconds, "whole": 2 * seconds}
"""


@pytest.fixture
def launches(tmp_path: Path) -> list[Launch]:
    (tmp_path / "driver.py").write_text(DRIVER)
    one = Launch("fake", sys.executable, tmp_path / "driver.py", "m", ("",), "int8", 1, tmp_path)
    return [one, replace(one, name="fake lookup", use=("lookup",))]


def test_peers_take_part(launches: list[Launch]):
    of = Record({}, DEFAULT_MODEL, (), 1, 2, 2, 6, 0)
    with Race(of, Path(), lambda *a: None) as race:
        race.start(DEFAULT_MODEL, ["prompt-lookup"], [])
        race.start_peers([*launches, replace(launches[0], name="gone", driver=Path("/no/driver.py"))])
        race.run(["json"], [1, 2], [0.0])
    one, two = of.results
    assert of.peers == {"fake": "7", "fake lookup": "7"}
    assert "gone" in of.failed
    assert one.rate("fake").median == 5.0
    assert one.ratio("fake lookup", "fake").median == 2.0
    assert [s.new for s in one.samples["fake"]] == [12, 12]
    assert not one.wrong
    assert one.differ["fake"] == 4  # its answers are not ours, and nobody promised that
    assert "one at a time" in two.cannot["fake"]
    assert set(two.samples) == {PLAIN, "prompt-lookup"}
    assert "fake lookup" in pages(of)["peers"]


def test_a_peer_that_cannot_says_so(launches: list[Launch]):
    peer = Peer(launches[0])
    cat = category("json", 2, 0, Path())
    with pytest.raises(CannotError, match="one at a time"):
        peer.answer(Asked([[1], [2]], cat, 4, 0.0, 0, (5,)))
    peer.close()


def test_every_way_of_every_peer(tmp_path: Path):
    for name in WAYS:
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "python").touch()
        assert "def answer(" in (SCRIPTS / f"{name}_driver.py").read_text()
    model = tmp_path / "model"
    model.mkdir()
    made = speculating(tuple(WAYS), model, "int8", 2, tmp_path, tmp_path, Path())
    assert len(made) == sum(map(len, WAYS.values()))
    assert [x.use for x in made if x.name.startswith("openvino")] == [("",), ("lookup",)]
    drafted = speculating(["openvino"], model, "int8", 2, tmp_path, tmp_path, model)
    assert drafted[-1].name == "openvino draft"
    assert drafted[-1].use[:2] == ("draft", str(model))


def test_tokens_count_from_when_every_prompt_has_one():
    watch = runpy.run_path(str(SCRIPTS / "_texts.py"))["Watch"](2)
    watch.got(0, [1, 2])
    watch.turn()
    watch.got(0, [3])
    watch.got(1, [4])
    watch.turn()
    watch.got(1, [5, 6])
    watch.turn()
    told = watch.report()
    assert told["answers"] == [[1, 2, 3], [4, 5, 6]]
    assert told["tokens"] == 2
    assert 0 <= told["seconds"] <= told["whole"]
    never = runpy.run_path(str(SCRIPTS / "_texts.py"))["Watch"](1).report()
    assert (never["tokens"], never["seconds"]) == (0, 0.0)
