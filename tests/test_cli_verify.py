"""`pronghorn verify`: it passes what keeps its promise and fails what does not."""

from __future__ import annotations

from dataclasses import dataclass

import cli
import numpy as np
import pytest

from pronghorn.cli import measure, verify
from pronghorn.compose import compose
from pronghorn.llm import DEFAULT_USE, LLM, make_engine
from pronghorn.model.arch import build_tape
from pronghorn.types import Guarantee, Traits

FEW = ("--backend", "ref", "-n", "8", "--json")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> cli.Caller:
    return cli.Caller(capsys, monkeypatch)


@dataclass(frozen=True)
class Liar:
    """Skips a layer and calls that exact."""

    slot = "gate"
    traits = Traits(Guarantee.EXACT)

    def skips(self, n_layers: int) -> tuple[int, ...]:
        return (3,)


def report(*use, tokens=16):
    return verify.measure("pronghorn-tiny", use, verify.PROMPTS[:2], tokens, 0.02, "ref64", "ref", 1)


def test_exact_methods_pass(call):
    result = call("verify", *FEW)
    assert result.status == 0
    data = result.data
    assert data["guarantee"] == "exact"
    assert sorted(m.partition(":")[0] for m in data["methods"]) == sorted(DEFAULT_USE)
    assert sorted(map(int, data["layers"])) == list(range(8))
    assert 0 < max(data["layers"].values()) < 1e-5
    assert 0 < data["plain"]["worst"] < 1e-4
    assert data["with_methods"]["top1"] == 1.0
    assert all(o["at"] == -1 for o in data["greedy"])
    assert data["failures"] == []


def test_report_for_people(call):
    result = call("verify", "--backend", "ref", "-n", "4", "--use", "snapkv:budget=16,window=4")
    assert result.status == 0
    assert result.err == ""  # no bar where stderr is no terminal
    assert "Hidden states" in result.out
    assert "approximate" in result.out


def test_a_method_that_lies_fails():
    found = report(Liar())
    assert found.guarantee == "exact"
    assert 3 not in found.layers
    assert any(f.startswith("layer ") for f in found.failures)
    assert any(f.startswith("prompt ") for f in found.failures)
    assert found.with_methods.kl > 100 * found.plain.kl


def test_the_status_of_a_failure_is_1(call, monkeypatch):
    broken = report(Liar(), tokens=2)
    monkeypatch.setattr(verify, "measure", lambda *args: broken)
    result = call("verify")
    assert result.status == 1
    assert "FAILED: " in result.out


def test_an_approximate_method_is_measured_and_does_not_fail():
    found = report("weight.int8")
    assert found.guarantee == "approximate"
    assert found.failures == ()
    assert found.with_methods.mean > 10 * found.plain.mean


def test_follow_gives_the_logits_of_decoding():
    """Forcing a known answer through trees of 64 rows reproduces the logits of one row at a time."""
    llm = LLM(backend="ref")
    tape = build_tape(llm.checkpoint.config)
    plain = compose(("match", "fcfs"))
    engine = make_engine(llm.checkpoint, tape, measure.probed(plain, 8), llm.tokenizer, "ref")
    bench = measure.Bench(engine, plain.verify)
    ids = llm.tokenizer.encode("Once upon a time")
    answer, logits = bench.greedy(ids, 80)
    assert len(logits) == len(answer) == 80
    again = bench.follow(ids, answer)
    assert again.shape == logits.shape
    np.testing.assert_allclose(again, logits, atol=1e-4)
    assert engine.methods.constrain == plain.constrain  # what it swapped is back


def test_script_rolls_back():
    script = measure.Script((5, 6, 7))
    assert script.advance([5, 9]) == 1
    assert script.forced() == [6, 7]
    script.rollback(1)
    assert script.advance([5, 6, 7, 1, 2]) == 5
    assert script.done()
    script.rollback(5)
    mask = np.zeros(10, bool)
    script.mask(mask)
    assert np.flatnonzero(mask).tolist() == [5]


def test_compare():
    logits = np.array([[0.0, 3.0, 1.0], [2.0, 0.0, 1.5]])
    assert measure.compare(0, [1, 0], logits, [1, 0]).at == -1
    other = measure.compare(0, [1, 0], logits, [1, 2])
    assert (other.at, other.gap) == (1, 0.5)
    assert measure.compare(0, [1, 0], logits, [1]).gap == float("inf")


def test_distance_of_a_known_shift():
    reference = np.log(np.array([[0.5, 0.25, 0.25]]))
    moved = np.log(np.array([[0.25, 0.5, 0.25]]))
    found = measure.distance([(moved, reference, [0])])
    assert found.mean == pytest.approx(np.log(2))
    assert found.kl == pytest.approx(0.25 * np.log(2))
    assert found.top1 == 0.0


def test_refusals(call, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.write_text("\n\n")
    assert "no prompts" in call.refused("verify", "--prompts", str(empty))
    assert "cannot read" in call.refused("verify", "--prompts", str(tmp_path / "absent"))
    assert "cannot work" in call.refused("verify", "--use", "skip-layers:layers=99")
    assert "did you mean" in call.refused("verify", "--use", "snapvk")
    assert "leave it out" in call.refused("verify", "--use", "best-of-n")
    assert "--tokens" in call.refused("verify", "-n", "0")
    monkeypatch.setattr("pronghorn.llm.free_memory", lambda: 1 << 20)
    assert "--reference ref" in call.refused("verify")


def test_prompts_from_a_file(call, tmp_path):
    file = tmp_path / "prompts"
    file.write_text("One\n\nTwo\nThree\n")
    data = call("verify", "--backend", "ref", "-n", "2", "--json", "--prompts", str(file)).data
    assert len(data["greedy"]) == 3
