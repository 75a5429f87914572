"""bench/losslessness.py finds what it looks for, keeps what agreed and writes the table of its page."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from pronghorn.compose import names
from pronghorn.methods.verify.match import Match
from pronghorn.types import Accept

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench")]

import losslessness as bench  # noqa: E402

ONE = ["--only", "prompt-lookup", "--only", "penalties", "--data", "/nowhere"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "QUICK", (6, 24))
    monkeypatch.setattr(bench, "PROMPTS", 6)
    monkeypatch.setattr(bench, "TOKENS", 24)


def guess(self: Match, p: Any, draft: Any) -> Accept:
    """The first drafted token always stands."""
    return Accept([0], p.draw(1)) if draft.n else Accept([], p.draw(0))


def test_every_drafter_is_there_in_its_ways(tmp_path: Path) -> None:
    every = bench.drafters(tmp_path / "x.store")
    assert {d.partition(":")[0] for d in every} == set(names()["draft"])
    assert len([d for d in every if "tree=" in d]) == len(bench.KINDS) - 1
    assert len(bench.chosen([], every)) == len(every) * len(bench.CONDITIONS)
    assert bench.chosen(["rest", "sampled"], every) == [("rest:store=STORE", "sampled")]
    with pytest.raises(SystemExit, match="called 'nobody'"):
        bench.chosen(["nobody"], every)


def test_a_drafter_with_unknown_needs_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(bench.WAYS, "rest")
    with pytest.raises(SystemExit, match="how to run rest"):
        bench.drafters(tmp_path / "x.store")


def test_agreement(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--quick", *ONE]) == 0
    assert re.search(r"penalties +prompt-lookup +144 of 144, \d\.\d\d\n", capsys.readouterr().out)


def test_a_changed_token_is_shown_with_its_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Match, "verify", guess)
    assert bench.main(["--quick", *ONE]) == 1
    out = capsys.readouterr().out
    assert re.search(r"differs: prompt \d \(\w[\w-]*\), token \d+: \d+ '.*' without drafts, \d+ '", out)
    assert "144 of 144" not in out


def test_what_compares_nothing_is_no_agreement(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bench.CONDITIONS, "penalties", bench.Condition())
    monkeypatch.setitem(bench.WAYS, "rapid", ("least=1000000",))
    assert bench.main(["--quick", "--only", "rapid", *ONE[2:]]) == 1
    out = capsys.readouterr().out
    assert "no drafted token of rapid:least=1000000 stood" in out
    assert "penalties changes no answer" in out


def test_records_and_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, records = tmp_path / "page.md", str(tmp_path / "records")
    page.write_text(f"<!-- table: {bench.TABLE} -->\nnone\n<!-- end -->\n", encoding="utf-8")
    monkeypatch.setattr(bench, "PAGE", page)
    assert bench.main([*ONE, "--to", records]) == 0
    text = page.read_text(encoding="utf-8")
    assert "144 of 144" in text

    def never(*_: Any) -> Any:
        raise AssertionError("it was there")

    monkeypatch.setattr(bench, "answers", never)
    assert bench.main([*ONE, "--to", records]) == 0
    assert page.read_text(encoding="utf-8") == text
    monkeypatch.undo()
    monkeypatch.setattr(bench, "PAGE", page)
    monkeypatch.setattr(bench, "TOKENS", 24)
    monkeypatch.setattr(Match, "verify", guess)
    assert bench.main([*ONE, "--to", records, "--again"]) == 1
    assert page.read_text(encoding="utf-8") == text, "differences are not put on the page"
    assert not list(Path(records).glob("prompt-lookup*")), "and leave no record"


def test_the_page_of_the_project_wants_it() -> None:
    assert re.findall(r"<!-- table: (.+?) -->\n", bench.PAGE.read_text(encoding="utf-8")) == [bench.TABLE]
