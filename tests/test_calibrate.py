"""`pronghorn calibrate`: what it finds holds, and can be used as it is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cli
import pytest

from pronghorn.calibrate.skips import Search, gain
from pronghorn.calibrate.trial import given, own
from pronghorn.llm import LLM

SMALL = ("calibrate", "skip-set", "--places", "32", "--prompts", "2", "--threads", "1")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> cli.Caller:
    pytest.importorskip("pronghorn.ops.cpu._native")
    return cli.Caller(capsys, monkeypatch)


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(" ".join(f"The code of the {a} {b} is {i * 37}." for i, a in enumerate(["river", "gate"])
                             for b in ["stone", "lamp", "fox", "cedar"] * 6))  # fmt: skip
    return path


def searching(llm: LLM, places: int = 32) -> Search:
    return Search(llm, own(llm).texts[:6], places)


def test_the_spec_is_printed_and_works(call: cli.Caller) -> None:
    told = call(*SMALL, "--json").data
    assert told["draft"] == f"self-skip:layers={told['layers']}"
    assert 0 < told["share"] < 1
    assert 0 < told["agree"] <= 1
    assert told["gain"] == gain(told["agree"], told["share"])
    assert told["trial"]["plain"] > 0 < told["trial"]["drafted"]
    shown = call(*SMALL)
    assert shown.status == 0
    assert shown.out.splitlines()[-1] == f"--draft {told['draft']}"  # the same in every run
    assert "tokens/s" in shown.out
    answer = call("run", "--threads", "1", "--draft", told["draft"], "-n", "16", "--json", "Once upon a time")
    assert answer.data["stats"]["drafted"] > 0


def test_the_user_s_text_is_looked_at(call: cli.Caller, prose: Path) -> None:
    llm = LLM(threads=1)
    pieces = given(llm, prose).texts
    assert [t for ids in pieces for t in ids] == llm.tokenizer.encode(prose.read_text())
    llm.close()
    told = call(*SMALL, "--text", str(prose), "--json").data
    assert told["layers"]
    assert "give more text" in call.refused(*SMALL, "--text", str(prose), "--places", "2000")
    assert "cannot read" in call.refused(*SMALL, "--text", "/nowhere")


def test_a_set_is_judged_by_the_weights_in_use(call: cli.Caller) -> None:
    """With packed matrices the whole model and the cut one have the same ones."""
    llm = LLM(use=["weight.int8"], defaults=("match", "fcfs"), threads=1)
    search = searching(llm)
    assert search.agree([]) == 1.0
    assert 0 < search.share(["1"]) < 1
    search.close()
    llm.close()
    assert call(*SMALL, "--use", "int8", "--json").data["layers"]


def test_the_best_set_is_the_best_of_those_tried() -> None:
    pytest.importorskip("pronghorn.ops.cpu._native")
    llm = LLM(defaults=("match", "fcfs"), threads=1)
    search = searching(llm)
    ticks: list[tuple[int, int]] = []
    found = search.run(lambda done, most: ticks.append((done, most)))
    assert ticks == sorted(ticks)
    assert ticks[-1][0] < ticks[-1][1]
    worth = {k: gain(a, search.share(sorted(k))) for k, a in search._agree.items() if a >= 0}
    assert found.gain == max(worth.values())
    assert gain(search.agree(found.layers.split("+")), search.share(found.layers.split("+"))) == found.gain
    search.close()
    assert llm.engine.store.held == 0
    llm.close()


@pytest.mark.parametrize("at", ["Search._try", "_answer"])
def test_ctrl_c_keeps_the_best_so_far(call: cli.Caller, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """In the search after ten sets, and in the trial."""
    from pronghorn.calibrate import trial

    home: Any = Search if at == "Search._try" else trial
    name, calls = at.rpartition(".")[2], []
    real = getattr(home, name)

    def stop(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > (10 if home is Search else 1):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(home, name, stop)
    told = call(*SMALL)
    assert told.status == 130
    assert "stopped" in told.out
    assert told.out.splitlines()[-1].startswith("--draft self-skip:layers=")


def test_help_has_examples(call: cli.Caller) -> None:
    for command in (("calibrate",), ("calibrate", "skip-set")):
        assert "Examples" in call(*command, "--help").out
