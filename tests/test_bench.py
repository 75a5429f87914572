"""`pronghorn bench speed`: checkpoints that load, costs counted right, figures that come from clocks."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cli import Caller

from pronghorn.bench.attribute import Part, judge
from pronghorn.bench.cells import KINDS, Cell, plan
from pronghorn.bench.cost import Model, cost, model_of
from pronghorn.bench.engines import CannotError, EngineError, Launch, Process
from pronghorn.bench.limits import Limits, Probe, between
from pronghorn.bench.ours import Driver
from pronghorn.bench.peers import NAMES, SCRIPTS, precision_of
from pronghorn.bench.picture import roofline
from pronghorn.bench.record import Record, Result, Sample
from pronghorn.bench.shapes import SHAPES, Shape, find_shape, make, tokenizer
from pronghorn.errors import RequestError
from pronghorn.llm import LLM

SMALL = Shape("qwen2", 64, 96, 2, 4, 2, 16, 700, 512, 1e4, 1e-6, bias=True)
NO_TICK = lambda done, total: None  # noqa: E731


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    return Caller(capsys, monkeypatch)


# ------------------------------------------------------------------------------- checkpoints


def test_a_made_checkpoint_runs(tmp_path: Path):
    folder = make(SMALL, tmp_path / "small", NO_TICK)
    llm = LLM(str(folder), threads=1)
    text = "naïve Straße, 東京 🙂"
    assert llm.tokenizer.n_vocab == SMALL.vocab
    assert llm.tokenizer.decode(llm.tokenizer.encode(text)) == text
    assert len(llm.generate(text, max_tokens=5, ignore_eos=True).tokens) == 5
    assert not (tmp_path / "small.part").exists()


def test_a_checkpoint_is_made_once_and_again_when_it_does_not_fit(tmp_path: Path):
    ticks = []
    make(SMALL, tmp_path / "x", lambda done, total: ticks.append((done, total)))
    assert ticks[-1][0] == ticks[-1][1] == 2 * sum(_size(d) for _, d in SMALL.tensors())
    n = len(ticks)
    make(SMALL, tmp_path / "x", lambda *a: ticks.append(a))
    assert len(ticks) == n
    with open(tmp_path / "x" / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    make(SMALL, tmp_path / "x", lambda *a: ticks.append(a))
    assert len(ticks) == 2 * n


def _size(dims: tuple[int, ...]) -> int:
    out = 1
    for d in dims:
        out *= d
    return out


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("smollm2-135m", 134_515_008), ("qwen2.5-0.5b", 494_032_768), ("llama-3.2-1b", 1_235_814_400)],
)
def test_shapes_have_as_many_parameters_as_the_real_models(name: str, parameters: int):
    assert sum(_size(dims) for _, dims in SHAPES[name].tensors()) == parameters


@pytest.mark.parametrize("vocab", [500, 70_000])
def test_every_merge_makes_a_token(vocab: int):
    model = tokenizer(vocab)["model"]
    assert sorted(model["vocab"].values()) == list(range(vocab))
    assert all(
        a in model["vocab"] and b in model["vocab"] and a + b in model["vocab"] for a, b in model["merges"]
    )


# ------------------------------------------------------------------------------- costs and limits


def test_costs_of_a_model(tmp_path: Path):
    folder = make(SMALL, tmp_path / "small", NO_TICK)
    engine = LLM(str(folder), threads=1).engine
    m = model_of(engine)
    per_layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96
    assert m.body == {"bf16": 2 * per_layer}
    assert m.head == {"bf16": 700 * 64}
    assert m.kv_row == 2 * 2 * 2 * 16 * 2  # keys and values, layers, heads, channels, bytes
    assert m.attend == 4 * 4 * 16
    assert 2 * m.n_weights <= m.weight_bytes <= 2.2 * m.n_weights + 4096
    whole = LLM(str(folder), ["weight.fp32"], threads=1).engine
    assert model_of(whole).body == {"fp32": 2 * per_layer}


def test_costs_of_cells():
    m = Model(1000, {"int8": 900}, {"bf16": 100}, 10.0, 8, "bf16", (0, 4), 512)
    one = cost(Cell("prefill", 6), m, 1)
    keys = 21 + (1 + 2 + 3 + 4 + 4 + 4)
    assert one.n_bytes == 1000 + 60
    assert one.operations == {"bf16": 8 * keys + 200, "int8": 2 * 900 * 6}
    step = cost(Cell("decode", 3, 10), m, 4)  # a context of 12 on average
    assert step.n_bytes == 1000 + 3 * 10 * (12 + 4) / 2
    assert step.operations == {"bf16": 8 * 3 * 16 + 200 * 3, "int8": 2 * 900 * 3}
    rows = cost(Cell("rows", 3, 10), m, 4)  # one sequence: its keys are read once
    assert rows.n_bytes == 1000 + 10 * (10 + 4) / 2


def test_the_limit_is_memory_or_arithmetic():
    limits = Limits(100.0, 60.0, 50.0, {"fp32": 10.0, "bf16": 20.0})
    assert limits.seconds(100, {"fp32": 10, "bf16": 10}) == 2.0
    assert limits.seconds(100, {"fp32": 10, "bf16": 40}) == 3.0
    assert limits.peak("int8") == 20.0  # bfloat16 stands in for it
    assert between(limits, replace(limits, read=70.0)).read == 60.0


def test_the_probe_measures_this_machine():
    probe = Probe(1)
    limits = probe.measure(1 << 20)
    assert limits.read >= limits.memory > 1e8
    assert limits.peaks["fp32"] > 1e8
    assert limits.one == limits.memory
    assert probe.round_trip() == 0
    assert (limits.mode, replace(limits, memory=2 * limits.one).mode) == ("narrow", "wide")


def test_ratios_compare_rounds():
    limits = Limits(100.0, 60.0, 100.0, {"fp32": 10.0})
    of = {"pronghorn": [1.0, 2.0, 1.0], "other": [3.0, 8.0, 2.0]}
    samples = {n: [Sample(i, s, limits) for i, s in enumerate(x)] for n, x in of.items()}
    m = Model(50, {"fp32": 1}, {}, 0.0, 0, "fp32", (0,), 512)
    result = Result(Cell("decode", 2, 8), cost(Cell("decode", 2, 8), m, 0), samples)
    ratio = result.ratio("other")
    assert (ratio.median, ratio.low, ratio.high, ratio.n) == (3.0, 2.0, 4.0, 3)
    assert result.rate("pronghorn").median == 2.0
    assert result.share("pronghorn").median == 0.5


def test_the_roofline_is_a_picture():
    import xml.etree.ElementTree as ElementTree

    limits = Limits(5e10, 4e10, 5e10, {"fp32": 5e11, "int8": 2e12})
    record = Record({}, "a <model>", ("weight.int8",), "int8", 2, 0.0)
    empty = ElementTree.fromstring(roofline(record))
    assert "a <model>" in "".join(empty.itertext())
    m = Model(10**8, {"int8": 10**8}, {}, 0.0, 0, "fp32", (0,), 512)
    for cell in (Cell("decode", 1, 128), Cell("prefill", 512), Cell("rows", 8, 128)):
        seconds = 2 * limits.seconds(cost(cell, m, 0).n_bytes, cost(cell, m, 0).operations)
        samples = {n: [Sample(0, seconds, limits)] for n in ("pronghorn", "other & co")}
        record.results.append(Result(cell, cost(cell, m, 0), samples))
    drawn = ElementTree.fromstring(roofline(record))
    titles = [e.text for e in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert {"pronghorn: prefill 512", "other & co: step of 8 rows"} <= set(titles)
    for mark in drawn.iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 < float(mark.attrib["cx"]) < 860
        assert 0 < float(mark.attrib["cy"]) < 520


# ------------------------------------------------------------------------------- where time goes


def test_a_profile_adds_up(tmp_path: Path):
    """Parts of a step are the step: their times sum to it, and their weights to the model's."""
    driver = Driver()
    driver.load(str(make(SMALL, tmp_path / "small", NO_TICK)), [], "", 2, "")
    found = driver.profile("decode", {"batch": 2, "context": 40, "tokens": 8}, 8)
    parts = [Part(**p) for p in found["parts"]]
    assert abs(sum(p.time for p in parts) - found["seconds"]) < 0.02 * found["seconds"]
    assert all(0 <= p.wait <= p.time and p.others >= 0 for p in parts)
    m = model_of(driver.engine)
    weights = sum(sum((p.matrices or {}).values()) for p in parts)
    assert weights == m.n_weights
    assert sum(p.count for p in parts if p.attends) == SMALL.layers
    assert sum(p.is_head for p in parts) == 1
    again = driver.engine.runner.exe
    again.start_profile()
    assert sum(t for thread in again.stop_profile() for t, _ in thread) == 0  # starts anew, nothing ran


def test_verdicts():
    limits = Limits(100.0, 60.0, 100.0, {"fp32": 1000.0})
    m = Model(50, {"fp32": 25}, {}, 1.0, 4, "fp32", (0,), 512)
    one = Cell("decode", 1, 8)
    near = judge(Part("x", 1, 1.0, n_bytes=90, matrices={"fp32": 25}), one, m, limits, 2.0)
    assert (near.by, near.said) == ("memory", "near its limit")
    busy = judge(Part("x", 1, 1.0, n_bytes=10, matrices={"fp32": 250}), one, m, limits, 2.0)
    assert (busy.by, busy.limit) == ("arithmetic", 0.5)
    assert "off its limit by 500.00 ms" in busy.said
    assert "overhead" in judge(Part("x", 1, 1.0, matrices={}), one, m, limits, 2.0).said
    assert judge(Part("x", 1, 0.01, matrices={}), one, m, limits, 2.0).said == ""
    attend = judge(Part("x", 1, 1.0, matrices={}, attends=True), Cell("decode", 3, 10), m, limits, 2.0)
    assert attend.limit == max(3 * 10 / 100, 4 * 10 * 3 / 1000)


# ------------------------------------------------------------------------------- processes

DRIVER = """
import os, time
class Driver:
    def prepare(self, model, precision, cache):
        self.precision = precision
    def load(self, model, use, precision, threads, cache):
        print("noise on stdout")
        of = os.environ
        return {"threads": of["OMP_NUM_THREADS"], "path": of["PYTHONPATH"], "precision": self.precision}
    def prefill(self, n):
        return n / 1000
    def decode(self, batch, context, tokens):
        raise NotImplementedError("no batches")
    def rows(self, n, context, repeat):
        if n == 1:
            raise ValueError("one row")
        os._exit(3)
"""


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    import sys

    (tmp_path / "driver.py").write_text(DRIVER)
    return Launch("fake", sys.executable, tmp_path / "driver.py", "m", (), "int8", 3, tmp_path)


def test_an_engine_answers_fails_and_ends(launch: Launch):
    engine = Process(launch)
    try:
        engine.prepare()
        facts, start, held = engine.load()
        assert facts == {"threads": "3", "path": "", "precision": "int8"}
        assert held.resident > 1 << 20
        assert 0 < start.ready <= start.loaded <= start.first
        assert engine.ask("prefill", n=500) == 0.5
        with pytest.raises(CannotError, match="no batches"):
            engine.ask("decode", batch=1, context=1, tokens=1)
        with pytest.raises(EngineError, match="one row"):
            engine.ask("rows", n=1, context=1, repeat=1)
        with pytest.raises(EngineError, match="ended"):
            engine.ask("rows", n=2, context=1, repeat=1)
        with pytest.raises(EngineError, match="ended"):
            engine.ask("prefill", n=1)
    finally:
        engine.close()


def test_a_driver_that_cannot_start_says_why(launch: Launch):
    launch.driver.write_text("import a_package_that_is_not_there")
    with pytest.raises(EngineError, match="a_package_that_is_not_there"):
        Process(launch)


def test_closing_leaves_no_process(launch: Launch):
    engine = Process(launch)
    pid = engine._child.pid
    engine.close()
    time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# ------------------------------------------------------------------------------- the command


def test_plan():
    assert {c.kind for c in plan(False, ())} == set(KINDS) - {"start"}
    assert {c.kind for c in plan(True, ["rows", "start"])} == {"rows"}
    assert set(plan(True, ())) <= set(plan(False, ()))
    with pytest.raises(RequestError, match="sideways"):
        plan(False, ["sideways"])
    with pytest.raises(RequestError, match="qwen2"):
        find_shape("huge")


def test_the_command_measures_and_writes(call: Caller, tmp_path: Path):
    file = tmp_path / "out.json"
    result = call(
        "bench", "speed", "--quick", "--rounds", "2", "--threads", "1", "--use", "int8", "--json", str(file)
    )
    assert result.status == 0, result.err
    for part in ("Prefill", "batch 8", "A step of n rows", "of limit", "first token", "GB/s"):
        assert part in result.out
    data = json.loads(file.read_text())
    assert data["threads"] == 1
    assert data["use"] == ["weight.int8"]
    assert data["starts"]["pronghorn"]["warm"][0]["first"] > 0
    assert data["loaded"]["pronghorn"]["resident"] > data["costs"]["weight_bytes"]
    kinds = {r["cell"]["kind"] for r in data["results"]}
    assert kinds == {"prefill", "decode", "rows"}
    for r in data["results"]:
        ours = r["engines"]["pronghorn"]
        assert ours["seconds"]["low"] > 0
        assert ours["rate"]["n"] == len(r["samples"]["pronghorn"]) == 2
        assert 0 < ours["share_of_limit"]["median"] < math.inf  # near 1 on a quiet machine


def test_the_command_profiles_and_draws(call: Caller, tmp_path: Path):
    picture = tmp_path / "roof.svg"
    result = call("bench", "speed", "--profile", "--threads", "1", "--plot", str(picture))
    assert result.status == 0, result.err
    assert "Where the time of decode batch 8, context 128 goes" in result.out
    assert "attend" in result.out
    assert "head: " in result.out
    assert picture.read_text().startswith("<svg")


@pytest.mark.parametrize("use", ["kvfmt.int8", "streaming-llm", "snapkv"])
def test_prompts_run_where_rows_are_packed_or_dropped(use: str, tmp_path: Path):
    driver = Driver()
    driver.load(str(make(SMALL, tmp_path / "small", NO_TICK)), [use], "", 1, "")
    rows = []
    run = driver.engine.runner.run
    driver.engine.runner.run = lambda r, *rest: rows.append(r.n) or run(r, *rest)
    assert driver.decode(2, 100, 4) > 0
    assert sum(rows) >= 2 * 101 + 4 * 2
    assert not driver.engine.busy
    assert driver.engine.store.held == 0


def test_decoding_is_timed_behind_a_filled_context(tmp_path: Path):
    driver = Driver()
    driver.load(str(make(SMALL, tmp_path / "small", NO_TICK)), [], "", 1, "")
    seen = []
    run = driver.engine.runner.run
    driver.engine.runner.run = lambda r, kvs, taps: (
        seen.append([kv.length for kv in kvs]) or run(r, kvs, taps)
    )
    driver.decode(3, 100, 4)
    assert seen[-5:] == [[100 + i] * 3 for i in range(5)]
    assert driver.engine.store.held == 0


def test_an_interrupted_run_says_what_it_has(call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from pronghorn.bench.race import Race

    run = Race.run
    runs = []

    def stop(self: Race, cells: list[Cell]) -> None:
        if runs:
            raise KeyboardInterrupt
        runs.append(cells)
        run(self, cells)

    monkeypatch.setattr(Race, "run", stop)
    file = tmp_path / "out.json"
    result = call("bench", "speed", "--quick", "--rounds", "2", "--threads", "1", "--json", str(file))
    assert result.status == 130
    assert "A step of n rows" in result.out
    assert "Prefill" not in result.out
    assert "Stopped" in result.out
    assert {r["cell"]["kind"] for r in json.loads(file.read_text())["results"]} == {"rows"}


def test_peers_are_looked_for(call: Caller, tmp_path: Path):
    ask = ("bench", "speed", "--only", "rows", "--peers", str(tmp_path), "--against")
    assert "build.py" in call.refused(*ask, "llama.cpp")
    assert "no peer called 'nobody'" in call.refused(*ask, "nobody")
    assert "--precision" in call.refused(*ask, "llama.cpp", "--use", "fp32")
    assert "no precision" in call.refused(*ask, "llama.cpp", "--precision", "int9")
    assert [precision_of([u]) for u in ("int8", "weight.int4:group=32", "bf16")] == ["int8", "int4", "bf16"]
    assert precision_of(["streaming-llm"]) == "bf16"


def test_every_peer_has_a_driver_and_pins():
    for name in NAMES:
        assert (SCRIPTS / f"{name}_driver.py").is_file()
        pins = (SCRIPTS / f"{name}.txt").read_text()
        assert all("==" in x or " @ " in x for x in pins.splitlines() if x and x[0] not in "#-")


def test_wrong_arguments_are_refused(call: Caller):
    assert "choose one" in call.refused("bench", "speed", "pronghorn-tiny", "--shape", "smollm2-135m")
    assert "no shape" in call.refused("bench", "speed", "--shape", "x")
    assert "no cells" in call.refused("bench", "speed", "--only", "x")
    assert "cannot be written" in call.refused("bench", "speed", "--json", "/nowhere/at/all.json")
    assert "no method" in call.refused("bench", "speed", "--use", "nonsense", "--only", "rows")
