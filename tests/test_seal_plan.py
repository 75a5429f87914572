"""Sealing with a plan stores what sealing everything and then applying the plan would store."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from pronghorn.compose import parse
from pronghorn.kv.store import SeqKV, Store
from pronghorn.model.rope import Rope
from pronghorn.nulls import Dense, ExactKV
from pronghorn.ops.ref import Ops
from pronghorn.types import KVPlan

LAYERS, HEADS, DIM = 2, 2, 8


def store(fmt: Any, select: Any, rows: str) -> Store:
    ropes: list[Rope | None] = [Rope(DIM, 1e4), None]
    return Store(Ops("float32"), LAYERS, HEADS, DIM, "float32", fmt, select, rows, ropes)


def grow(s: Store, kv: SeqKV, n: int, seed: int) -> None:
    """n open rows of random numbers."""
    r = np.random.default_rng(seed)
    _, block, slot = s.reserve(kv, n)
    for i in range(LAYERS * HEADS):
        for f, spec in enumerate(s.open_layout.fields):
            at = s.open_layout.where(0, i, f)
            for b, row in zip(block, slot, strict=True):
                ids = np.array([b], np.int32)
                page = s.open_arena.read(ids, at, spec.dtype, spec.shape)
                values = r.standard_normal(DIM)
                if spec.rows == 1:
                    page[0][:, row] = values
                else:
                    page[0][row] = values
                s.open_arena.write(ids, at, spec.dtype, page)
    s.extend(kv, range(kv.next_pos, kv.next_pos + n))


def plan_for(s: Store, kv: SeqKV, seed: int) -> KVPlan:
    """A random half of each group's rows; as many in every group, as policies keep."""
    r = np.random.default_rng(seed)
    n = kv.n_rows
    return KVPlan(
        {g: np.sort(r.permutation(n)[: n // 2]).astype(np.int32) for g in range(len(s.sealed_layout.groups))}
    )


def shown(s: Store, kv: SeqKV) -> list[Any]:
    view = s.view(kv, 0)
    return [view.pos, view.k, view.v, kv.next_pos, kv.length, kv.n_open, kv.dropped, view.valid]


@pytest.mark.parametrize(
    ("fmt", "select", "rows", "moves"),
    list(itertools.product(["", "kvfmt.int8"], ["", "quest"], ["seq", "layer", "head"], [False, True])),
)
def test_a_plan_at_sealing_equals_one_applied_after(fmt: str, select: str, rows: str, moves: bool):
    made = parse(fmt)[1] if fmt else ExactKV(), parse(select)[1] if select else Dense()
    one, two = store(*made, rows), store(*made, rows)
    a, b = one.new(), two.new()
    for step, n in enumerate((37, 16, 5, 64)):
        for s, kv in ((one, a), (two, b)):
            grow(s, kv, n, step)
        plan = plan_for(one, a, step)
        before = one.view(a, 0)
        keep = {m: plan.keep[g] for m, (g, _) in one.group_of.items()}
        want = {(x, h): before.v[x, h, keep[x, h]] for x, h in keep}
        one.seal(a, plan, moves)
        two.seal(b)
        two.apply(b, plan, moves)
        for x, y in zip(shown(one, a), shown(two, b), strict=True):
            # int8 keys that move are rounded once here, twice there
            loose = bool(fmt) and moves
            assert np.allclose(x, y, atol=0.1 if loose else 1e-6)
        for (x, h), v in want.items():
            got = one.view(a, 0).v[x, h, : len(v)]
            assert np.abs(got - v).max() < (0.05 if fmt else 1e-6)
    for s, kv in ((one, a), (two, b)):
        s.free(kv)
        assert s.held == 0
