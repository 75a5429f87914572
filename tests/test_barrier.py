"""The barrier rule: tokens do not depend on the drafter, on the tree or on the prompt's chunks.

Every policy x selector x KV format x constraint runs under several drafters and chunk sizes and must
give the same tokens as without a drafter, the prompt in one piece. With clipping off mismatches appear:
the test can fail.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest

from pronghorn import memory as core
from pronghorn.compose import Facts, check, compose
from pronghorn.nulls import EXACT
from pronghorn.slots import Room, StepPlan
from pronghorn.types import Draft
from tests.engines import engine, generate, prompt
from tests.small import specs
from tests.test_engine import Oracle

N_PROMPT, N_NEW = 90, 60


@dataclass(frozen=True)
class Chunks:
    """A scheduler for tests: prompts in chunks of a fixed size."""

    size: int
    slot = "sched"
    traits = EXACT

    def plan(self, waiting: Any, running: Any, room: Room) -> StepPlan:
        return StepPlan(tuple(waiting), tuple((s, self.size) for s in [*running, *waiting]))


@dataclass(frozen=True)
class Noise:
    """A drafter for tests: always wrong, and wide."""

    slot = "draft"
    traits = EXACT

    def propose(self, seqs: Any, k: Any, room: Any) -> list[Draft]:
        return [
            Draft.chain([(s.tokens[-1] + 3 * i) % 97 for i in range(1, min(most, 7) + 1)])
            for s, most in zip(seqs, k, strict=True)
        ]

    def observe(self, *_: Any) -> None:
        pass


FULL = "quest", "int8"  # one selector and one format; the others have much in common with them
MODEL = Facts(2, 4096, False, False)
COMBOS = [  # what is not refused: each method meets every other; those of FULL in all combinations
    combo
    for combo in itertools.product(
        [None, *specs("kv")], [None, *specs("select")], [None, *specs("kvfmt")], [None, *specs("constrain")]
    )
    if (
        sum(m is not None for m in combo) <= 2
        or all(not m or name in m for m, name in zip(combo[1:3], FULL, strict=True))
    )
    and not check(compose(["match", *(m for m in combo if m)]), MODEL)
]


DRAFTERS = specs("draft")
FEW = 3  # of them beside one combination; over all combinations each has its turns


def settings(answer: list[int], at: int) -> list[list[Any]]:
    """(drafter, chunk) settings under which nothing may change."""
    right = Oracle(tuple(answer), N_PROMPT, spoil=0)
    mixed = Oracle(tuple(answer), N_PROMPT, spoil=3)
    mine = [DRAFTERS[(FEW * at + i) % len(DRAFTERS)] for i in range(FEW)]
    drafters = [[right], [mixed], [Noise()], *([d] for d in mine)]
    chunks = [Chunks(999), Chunks(17), Chunks(64), Chunks(1)]
    pairs = [[*d, c] for d, c in zip(drafters, itertools.cycle(chunks))]
    return [*pairs, [Chunks(7)]]


def mismatches(backend: str, combo: tuple[Any, ...], clip: bool) -> tuple[int, int]:
    """(runs, runs whose tokens differ from the plain setting)."""
    use = ["match", *(m for m in combo if m is not None)]
    p = prompt(N_PROMPT, 5)

    def run(extra: list[Any], clipped: bool, seed: int) -> list[int]:
        e = engine([*use, *extra], backend, clip=clipped)
        out = generate(e, p, N_NEW, temperature=0.8, seed=seed, ignore_eos=False)
        e.close()
        assert e.store.held == 0
        return out

    seed, plain = 3, run([Chunks(999)], True, 3)
    while len(plain) <= 20:  # the text came to its end too soon to show anything
        seed += 1
        plain = run([Chunks(999)], True, seed)
    other = [run(s, clip, seed) for s in settings(plain, COMBOS.index(combo))]
    return len(other), sum(o != plain for o in other)


@pytest.fixture(autouse=True)
def fine_grids(monkeypatch: pytest.MonkeyPatch):
    """Barriers close enough together that a short text crosses many."""
    monkeypatch.setattr(core, "PROMPT_GRID", 32)
    monkeypatch.setattr(core, "DECODE_GRID", 16)


RUNS = [  # the reference runner, under the same engine and store, runs each method alone
    (backend, combo)
    for backend in ("ref64", "native")
    for combo in COMBOS
    if backend == "native" or sum(m is not None for m in combo) <= 1
]


def named(run: tuple[str, tuple[Any, ...]]) -> str:
    backend, combo = run
    return "-".join([*(str(m).split(":")[0] for m in combo), backend])


@pytest.mark.parametrize(("backend", "combo"), RUNS, ids=map(named, RUNS))
def test_tokens_do_not_depend_on_drafter_or_chunks(backend: str, combo: tuple[Any, ...]):
    runs, wrong = mismatches(backend, combo, clip=True)
    assert runs >= 5
    assert wrong == 0


@pytest.mark.parametrize("backend", ["ref64", "native"])
def test_without_clipping_tokens_differ(backend: str):
    """Negative control."""
    acting = [c for c in COMBOS if c[3] is None and (c[0] or c[1] or (c[2] and "int8" in c[2]))]
    wrong = sum(mismatches(backend, c, clip=False)[1] for c in acting[:8])
    assert wrong > 0
