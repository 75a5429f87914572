"""`pronghorn calibrate heads`: its table is that of the model, and methods go by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cli
import numpy as np
import pytest

from pronghorn.calibrate.heads import find, text, watching
from pronghorn.calibrate.table import read
from pronghorn.errors import MethodError, RequestError
from pronghorn.llm import LLM

SMALL = ("calibrate", "heads", "--threads", "1", "--tokens", "60", "--repeats", "3")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> cli.Caller:
    pytest.importorskip("pronghorn.ops.cpu._native")
    return cli.Caller(capsys, monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pronghorn.ops.cpu._native")
    path = tmp_path_factory.mktemp("tables") / "heads.json"
    llm = LLM(use=[watching()], defaults=("match", "fcfs"), threads=1)
    find(llm, "pronghorn-tiny", text(llm, 60, 3)).write(path)
    llm.close()
    assert llm.engine.store.held == 0
    return path


def test_the_table_is_told_and_written(call: cli.Caller, tmp_path: Path, made: Path) -> None:
    path = tmp_path / "t.json"
    told = call(*SMALL, "-o", str(path), "--json").data
    table = read(str(path))
    assert told["table"] == str(path)
    assert [list(row) for row in table.induction] == told["induction"]
    assert sorted(told["heads"]) == list(range(len(table.echo) * len(table.echo[0])))
    assert 0 < max(map(max, table.induction)) <= 1
    assert table == read(str(made)), "the same in every run"
    shown = call(*SMALL, "-o", str(path))
    assert shown.out.splitlines()[-1] == f"--use razor-attention:table={path}"


def test_it_needs_a_file_and_a_text(call: cli.Caller, tmp_path: Path) -> None:
    assert "-o" in call.refused(*SMALL)
    assert "repeats" in call.refused(*SMALL, "-o", str(tmp_path / "t"), "--tokens", "3")
    assert "cannot write" in call.refused(*SMALL, "-o", "/proc/none/t.json")


def test_backends_agree(made: Path) -> None:
    llm = LLM(use=[watching()], defaults=("match", "fcfs"), backend="ref")
    table = find(llm, "pronghorn-tiny", text(llm, 60, 3))
    llm.close()
    native = read(str(made))
    assert table.fingerprint == native.fingerprint
    for a, b in zip(table.induction + table.echo, native.induction + native.echo, strict=True):
        assert a == pytest.approx(b, abs=1e-2)  # this one's model is in float32


@pytest.mark.parametrize("name", ["razor-attention", "duo-attention"])
def test_methods_go_by_it(made: Path, name: str) -> None:
    pytest.importorskip("pronghorn.ops.cpu._native")
    options = "sinks=4,window=16,every=16,prompt_every=32,share=0.3"
    best = read(str(made)).best(0.3).reshape(-1)
    heads = "+".join(str(i) for i in range(len(best)) if best[i])
    answers = []
    for which in (f"table={made}", f"heads={heads}", "window=16"):
        spec = f"{name}:{which},{options.replace('window=16,', '') if which == 'window=16' else options}"
        llm = LLM(use=[spec], threads=1)
        answer = llm.generate("Once upon a time there was a fox. " * 8, max_tokens=48)
        answers.append((answer.tokens, answer.stats.kv_bytes))
        llm.close()
    assert answers[0] == answers[1]
    assert answers[2][1] < answers[0][1], "heads that retrieve keep more"


def test_another_model_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="calibrate heads"):
        LLM(use=[f"duo-attention:table={made}", "skip-layers:layers=1"], threads=1)
    data = json.loads(made.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data | {"fingerprint": "ab" * 32}))
    with pytest.raises(MethodError, match="another model"):
        LLM(use=[f"razor-attention:table={other}"], threads=1)


def test_packed_weights_have_the_model_s_table(made: Path) -> None:
    pytest.importorskip("pronghorn.ops.cpu._native")
    llm = LLM(use=[f"duo-attention:table={made}", "weight.int8"], threads=1)
    assert llm.generate("Once", max_tokens=4).tokens
    llm.close()


def test_a_request_opens_no_file(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("pronghorn.ops.cpu._native")
    llm = LLM(use=[f"duo-attention:table={made}"], threads=1)
    own = f"razor-attention:table={made},window=16"
    with pytest.raises(MethodError, match="started with"):  # notes are of the engine too; a table is there
        llm.generate("Once", max_tokens=4, use=(f"duo-attention:table={tmp_path / 'absent'}",))
    assert llm.generate("Once", max_tokens=4, use=(own,)).tokens
    llm.close()


def test_too_short_a_context_is_refused(made: Path) -> None:
    pytest.importorskip("pronghorn.ops.cpu._native")
    llm = LLM(use=[watching()], defaults=("match", "fcfs"), threads=1)
    shown = text(llm, 1 << 20, 4)
    assert len(shown.ids) <= llm.engine.bound.context - 1
    with pytest.raises(RequestError, match="repeats"):
        text(llm, 1 << 20, llm.engine.bound.context)
    llm.close()


def test_help_has_examples(call: cli.Caller) -> None:
    assert "Examples" in call("calibrate", "heads", "--help").out


# ------------------------------------------------------------------- on a model that looks things up

LOOKUP = Path(__file__).parent / "models" / "lookup"


@pytest.fixture(scope="module")
def looked() -> tuple[Path, list[Any]]:
    """The look-up model, and 20 texts of 512 tokens with a key and its two words asked for."""
    pytest.importorskip("pronghorn.ops.cpu._native")
    if not LOOKUP.is_dir():
        pytest.skip(f"{LOOKUP} is not here")
    from recipes.lookup.measure import made

    return LOOKUP, [made("kv", i, 512) for i in range(20)]


def found_by(model: Path, tasks: list[Any], use: list[Any]) -> tuple[int, float]:
    """Questions answered, and bytes of KV over those of the plain path."""
    from recipes.lookup.measure import judge

    llm = LLM(model, use=use, threads=1, defaults=("match", "fcfs"))
    right, again = judge(llm, tasks)
    stats = llm.generate(f"{tasks[0].text} {tasks[0].questions[0][0]}", max_tokens=4).stats
    llm.close()
    return min(right, again), stats.kv_bytes / stats.kv_full


@pytest.mark.parametrize(
    ("name", "share", "most"), [("duo-attention", 0.5, 0.62), ("razor-attention", 0.15, 0.4)]
)
def test_heads_found_retrieve_and_others_do_not(
    looked: tuple[Path, list[Any]], tmp_path: Path, name: str, share: float, most: float
) -> None:
    """Nothing is lost, at the second question neither; with as many other heads 30 points or more are. Half
    of duo-attention's bytes are whole heads, the rest sinks and windows."""
    model, tasks = looked
    path = tmp_path / "t.json"
    llm = LLM(model, use=[watching()], threads=1, defaults=("match", "fcfs"))
    table = find(llm, "lookup", text(llm, 120, 4))
    table.write(path)
    llm.close()
    best = table.best(share).reshape(-1)
    worst = "+".join(str(i) for i in np.flatnonzero(~best)[-int(best.sum()) :])
    options = "sinks=4,window=32,every=16"
    dense, _ = found_by(model, tasks, [])
    right, held = found_by(model, tasks, [f"{name}:table={path},share={share},{options}"])
    assert dense == len(tasks)
    assert right == dense
    assert held < most
    wrong, _ = found_by(model, tasks, [f"{name}:heads={worst},{options}"])
    assert wrong <= 0.7 * len(tasks)
