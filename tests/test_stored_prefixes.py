"""An answer is the same whatever its rows came from: computed, shared, read from the disk, swapped in."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pronghorn import memory
from pronghorn.kv.tiers import Swap
from pronghorn.llm import LLM
from pronghorn.nulls import InOrder
from pronghorn.seq import Request, Seq
from pronghorn.slots import Room, StepPlan
from pronghorn.types import Guarantee, Traits
from tests.engines import engine, generate, prompt, run_all
from tests.small import spec

STORY = "Once upon a time there was a little girl named Lily who liked to play in the park. " * 5
PROMPTS = [
    STORY + "One day", STORY + "Her mother said", STORY[:200] + "but", STORY + "One day she saw",
    STORY + "One day",
]  # fmt: skip
PLAIN = ("match", "fcfs")


def answers(use: Sequence[str], **options: Any) -> tuple[list[tuple[int, ...]], list[int], LLM]:
    llm = LLM(use=use, defaults=PLAIN, threads=1, **options)
    got = [llm.generate(p, max_tokens=20, ignore_eos=True) for p in PROMPTS]
    assert not isinstance(got[0], list)
    return [a.tokens for a in got], [a.stats.reused_tokens for a in got], llm  # type: ignore[union-attr]


def test_a_restart_changes_no_token(tmp_path: Path) -> None:
    want, _, llm = answers([])
    llm.close()
    folder = f"prefix:disk={tmp_path}"
    for use in (["prefix"], ["prefix:gb=0.0004"], [folder], [folder]):
        got, reused, llm = answers(use)
        assert got == want
        assert all(reused[1:])
        for disk in llm.methods.reuse._held.disks:
            disk.flush()
            assert any(n.on_disk for n in llm.methods.reuse.tree())
        llm.close()
        assert llm.engine.store.held == 0
    assert reused[0] > 100, "the second process started from what the first one wrote"
    for path in tmp_path.iterdir():
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 4
        path.write_bytes(raw)
    got, reused, llm = answers([folder])
    assert got == want
    assert reused[0] == 0
    assert llm.methods.reuse.disk_counts()["damaged"] > 0
    llm.close()


def test_another_model_or_method_reads_nothing(tmp_path: Path) -> None:
    folder = f"prefix:disk={tmp_path}"
    answers([folder])[2].close()
    for other in ("kvfmt.int8", "skip-layers:layers=1", "weight.int8"):
        _, reused, llm = answers([other, folder])
        assert reused[0] == 0
        llm.close()


@pytest.fixture
def fine_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROMPT_GRID", 32)
    monkeypatch.setattr(memory, "DECODE_GRID", 16)


@pytest.mark.usefixtures("fine_grids")
@pytest.mark.parametrize("backend", ["native", "ref64"])
@pytest.mark.parametrize("fmt", [[], ["kvfmt.int8"], ["kvfmt.int8", spec("quest")]])
def test_sealed_rows_from_the_disk(backend: str, fmt: list[str], tmp_path: Path) -> None:
    trunk = prompt(150, 3, repeat=False)
    prompts = [trunk, (*trunk[:100], *prompt(50, 4)), (*trunk, *prompt(9, 5)), trunk[:70]]
    plain = engine(["match", *fmt], backend)
    want = [generate(plain, p) for p in prompts]
    for _ in range(2):
        e = engine(["match", f"prefix:disk={tmp_path}", *fmt], backend)
        ((first, *_),) = e.run([Request(prompts[0], 48, ignore_eos=True)])
        assert [list(first.new), *(generate(e, p) for p in prompts[1:])] == want
        e.close()
        assert e.store.held == 0
    assert first.counts.reused >= 128


@dataclass(frozen=True)
class Rude:
    """Everybody runs, and somebody is sent back to wait now and then."""

    slot = "sched"
    traits = Traits(Guarantee.EXACT)
    draws: random.Random = field(default_factory=lambda: random.Random(1))

    def plan(self, waiting: Sequence[Seq], running: Sequence[Seq], room: Room) -> StepPlan:
        out = tuple(s for s in running if s.n_new and self.draws.random() < 0.2)
        left = [s for s in running if s not in out]
        plan = InOrder().plan([*waiting], left, room)
        return StepPlan(plan.admit, plan.rows, out) if plan.rows else InOrder().plan(waiting, running, room)


@pytest.mark.usefixtures("fine_grids")
@pytest.mark.parametrize("use", [[], ["kvfmt.int8"], [spec("snapkv")], [spec("streaming-llm")], ["prefix"]])
@pytest.mark.parametrize("where", ["file", "memory"])
def test_preempted_sequences_come_back_from_swap(
    use: list[str], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Swap, "seconds", lambda self, n_bytes: 0.0)
    requests = [Request(prompt(40 + 7 * i, i), 40, ignore_eos=True) for i in range(4)]
    want = [list(s.new) for s in run_all(engine(["match", *use]), requests)]
    e = engine(["match", *use, Rude()])
    e.memory.swap = Swap(e.store, str(tmp_path) if where == "file" else "")
    e.cost.observe(100, 1000, 1.0)
    got = run_all(e, requests)
    assert [list(s.new) for s in got] == want
    assert sum(s.counts.swapped for s in got) > 5
    e.close()
    assert e.store.held == 0
