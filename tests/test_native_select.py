"""The native runner chooses the pages that the selector's own `select` chooses, and changes nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from pronghorn.calibrate.channels import Channels, found
from pronghorn.calibrate.codebooks import Codebooks, fitted
from pronghorn.errors import UnsupportedError
from pronghorn.kv.layout import PAGE
from pronghorn.methods.kvfmt.int8 import Int8
from pronghorn.methods.select.a2ats import A2ATS
from pronghorn.methods.select.double_sparsity import DoubleSparsity
from pronghorn.methods.select.quest import Quest
from pronghorn.methods.select.tidal import Tidal
from pronghorn.ops.cpu import _native
from pronghorn.ops.ref import Ops
from pronghorn.run.base import sources
from pronghorn.run.native import NativeRunner
from pronghorn.run.ref import RefRunner
from pronghorn.types import Choice, Field, KVPlan
from tests.conformance import _find
from tests.native_tapes import Chunk, Driver, Model, build, store_for, tokens

NAMES = _find.names("select")
OWN = [n for n in NAMES if n != "recycled"]  # rows choose for themselves
MODEL = Model(layers=3, heads=8, n_kv=2, dim=20, width=64)
TAPS = ("q.last1",)
OPS = Ops("float32")
NONE, ONE = np.zeros(0, np.float32), np.zeros(1, np.float32)


def driver(
    selector: Any, model: Model = MODEL, n: int = 1, kv: str = "float32", fmt: Any = None, rows: str = "seq",
    threads: int = 2, kind: Any = NativeRunner, tables: Any = None,
) -> Driver:  # fmt: skip
    bound = build(model, taps=TAPS)
    store = store_for(bound, OPS, kv, fmt, selector, rows)
    store.tables = tables or {}
    return Driver(kind(bound, store, threads) if kind is NativeRunner else kind(bound, store), n)


def shown(d: Driver, kv: Any, layer: int, head: int) -> dict[str, Any]:
    """What `select` is shown of a head."""
    store = d.runner.store
    g, member = store.group_of[layer, head]
    s = kv.sealed[g]
    index = {name: OPS.cast(f) for name, f in store.read_fields(s.blocks, g, member, own=False).items()}
    if store.selector.choice.score == "keys":
        index |= {
            "k": store.sealed_rows(kv, layer, head)[0],
            "valid": np.arange(PAGE)[None] < s.fill[:, None],
        }
    return index


def agree(c: Choice, got: list[int], wanted: Any, score: Any) -> bool:
    """Whether choices are alike but for pages whose scores are so close that last bits decide."""
    ours = np.zeros(len(wanted), bool)
    ours[got] = True
    differ = np.flatnonzero(ours != wanted)
    if not len(differ):
        return True
    best = score.max(axis=0) if c.heads == "max" else score.sum(axis=0)
    return c.span == 1 and np.ptp(best[differ]) <= 2.01 * np.abs(best).max() / 4096


def compare(d: Driver, chunks: list[Chunk], exact: list[bool]) -> int:
    """Compares the last choice of every row of a step; returns how many there were."""
    selector = d.runner.store.selector
    sources = selector.sources(MODEL.layers)
    layer = max(sources)
    d.step(chunks, taps=True)
    q = d.out.taps["q"][layer].reshape(-1, MODEL.n_kv, MODEL.heads // MODEL.n_kv, MODEL.dim)
    n = row = 0
    for chunk in chunks:
        for _ in chunk.ids:
            for head in range(MODEL.n_kv):
                index = shown(d, d.kvs[chunk.seq], layer, head)
                x = q[row : row + 1, head] * np.float32(MODEL.dim**-0.5)
                own = selector.of(d.runner.store.tables, layer, head)
                wanted = own.select(x, index, OPS).pages[0]
                got = d.runner.exe.chosen(row, head)
                if wanted.all():
                    assert not got
                    continue
                score = own.score(x, index, OPS)[0]
                assert agree(selector.choice, got, wanted, score)
                exact.append(got == np.flatnonzero(wanted).tolist())
                n += 1
            row += 1
    return n


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(("kv", "fmt"), [("float32", None), ("bfloat16", None), ("float32", Int8())])
def test_native_choice_is_the_references(name: str, kv: str, fmt: Any) -> None:
    d = driver(_find.tight("select", name), n=3, kv=kv, fmt=fmt)
    for i, n in enumerate((250, 20, 135)):
        d.step([Chunk(i, tokens(n, seed=i))])
        d.runner.store.seal(d.kvs[i])
    exact: list[bool] = []
    for seed in range(4):
        chunks = [
            Chunk(0, tokens(3, seed=seed), [-1, 0, 0], []),
            Chunk(1, tokens(2), commit=[]),
            Chunk(2, [7], commit=[]),
        ]
        assert compare(d, chunks, exact) >= 3 * MODEL.n_kv
    assert np.mean(exact) > 0.9


@pytest.mark.parametrize("isa", _native.isas())
def test_books_and_channels_of_a_table_are_the_heads(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each head has its own; 7 codes do not divide its 20 channels."""
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    rng = np.random.default_rng(7)
    shape = (MODEL.layers, MODEL.n_kv)
    made = [
        [fitted(rng.standard_normal((600, 20)), np.diag(rng.random(20)), 7) for _ in range(2)]
        for _ in range(MODEL.layers)
    ]
    turn, book = (np.array([[pair[i] for pair in row] for row in made]) for i in (0, 1))
    sizes = found(rng.random((*shape, MODEL.dim)))
    for selector, table in (
        (A2ATS(48, 7, 0, "x"), Codebooks("m", "0" * 64, 1, turn, book)),
        (DoubleSparsity(48, 5, 0, "x"), Channels("m", "0" * 64, 1, sizes)),
    ):
        d = driver(selector, tables={"x": table})
        d.step([Chunk(0, tokens(250))])
        d.runner.store.seal(d.kvs[0])
        exact: list[bool] = []
        for seed in range(6):
            assert compare(d, [Chunk(0, tokens(3, seed=seed), [-1, 0, 0], [])], exact) == 3 * MODEL.n_kv
        assert np.mean(exact) > 0.9
        pair = [driver(selector, kind=k, tables={"x": table}) for k in (RefRunner, NativeRunner)]
        for e in pair:
            e.step([Chunk(0, tokens(150))])
            e.runner.store.seal(e.kvs[0])
        a, b = (np.concatenate(e.step([Chunk(0, tokens(3))])) for e in pair)
        assert np.abs(a - b).max() < 3e-5


@pytest.mark.parametrize("name", [n for n in OWN if n != "tidal"])
def test_choice_where_heads_hold_different_rows(name: str) -> None:
    d = driver(_find.tight("select", name), rows="head")
    d.step([Chunk(0, tokens(400))])
    d.runner.store.seal(d.kvs[0])
    n = [30 + 60 * g for g in range(len(d.kvs[0].sealed))]
    d.runner.store.apply(d.kvs[0], KVPlan({g: np.arange(m, dtype=np.int32) for g, m in enumerate(n)}), False)
    exact: list[bool] = []
    for seed in range(4):
        assert compare(d, [Chunk(0, tokens(2, seed=seed), commit=[])], exact) > 0
    assert np.mean(exact) > 0.9


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fmt", [None, Int8()], ids=["exact", "int8"])
def test_attention_reads_what_was_chosen(name: str, fmt: Any) -> None:
    """Logits are the reference's; it hides what is not chosen in dense attention."""
    selector = _find.tight("select", name)
    pair = [driver(selector, n=2, fmt=fmt, kind=k) for k in (RefRunner, NativeRunner)]
    dense = driver(None, n=2, fmt=fmt)
    for d in (*pair, dense):
        d.step([Chunk(0, tokens(150)), Chunk(1, tokens(3))])
        d.runner.store.seal(d.kvs[0])
    apart = 0
    for seed in range(6):
        chunks = [Chunk(0, tokens(3, seed=seed), [-1, 0, 0], []), Chunk(1, tokens(2))]
        a, b, whole = (np.concatenate(d.step(chunks)) for d in (*pair, dense))
        apart += np.abs(a - b).max() > 3e-5  # a choice between two as good as each other fell otherwise
        assert np.abs(b[:3] - whole[:3]).max() > 1e-3  # it does read less
        assert np.array_equal(b[3:], whole[3:])  # and whoever has little to choose from reads all, to the bit
    assert apart <= 1


@pytest.mark.parametrize("name", NAMES)
def test_nothing_changes_while_all_fits(name: str) -> None:
    a, b = driver(_find.full("select", name)), driver(None)
    for d in (a, b):
        d.step([Chunk(0, tokens(300))])
        d.runner.store.seal(d.kvs[0])
    for seed in range(3):
        assert np.array_equal(
            a.step([Chunk(0, tokens(4, seed=seed))])[0], b.step([Chunk(0, tokens(4, seed=seed))])[0]
        )
    assert a.runner.read_bytes == b.runner.read_bytes
    assert a.runner.exe.chosen(0, 0) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kv", ["float32", "bfloat16"])
def test_a_row_is_what_it_is_alone(name: str, kv: str) -> None:
    """To the bit: whatever else is in the step, in trees and in chunks, on one thread or three."""
    long = 2400 if kv == "bfloat16" and name in ("quest", "tidal") else 350  # several items score its pages

    def run(threads: int, steps: list[list[Chunk]]) -> dict[tuple[int, int], Any]:
        d = driver(_find.tight("select", name), n=3, kv=kv, threads=threads)
        for i, n in enumerate((long, 30, 300)):
            d.step([Chunk(i, tokens(n, seed=i))])
            d.runner.store.seal(d.kvs[i])
        out = {}
        for step in steps:
            for c, logits in zip(step, d.step(step), strict=True):
                for i, t in enumerate(c.ids):
                    if not c.parent:
                        out[c.seq, d.kvs[c.seq].length - len(c.ids) + i] = logits[i], t
        return out

    ids = [tokens(9, seed=50 + i) for i in range(3)]
    one = [[Chunk(i, [ids[i][j]])] for j in range(9) for i in range(3)]
    all_ = [[Chunk(i, ids[i][:4]) for i in (2, 0, 1)], [Chunk(i, ids[i][4:]) for i in (1, 2, 0)]]
    noise = [
        [Chunk(0, ids[0][:5]), Chunk(2, tokens(6, seed=3), [-1, 0, 0, 1, 1, 2], [])],
        [Chunk(0, ids[0][5:])],
    ]
    plain = run(1, one)
    for threads, steps in ((3, one), (1, all_), (3, all_), (3, noise)):
        for at, (logits, _) in run(threads, steps).items():
            if at in plain:
                assert np.array_equal(logits, plain[at][0]), at


@pytest.mark.parametrize("name", ["recycled", "tokenselect"])
@pytest.mark.parametrize("like", [-1.0, 0.5, 1.0])
@pytest.mark.parametrize("rows", ["seq", "head"])
def test_a_kept_choice_is_the_references(name: str, like: float, rows: str) -> None:
    """Rows behind a barrier read by the choice of its first row, where their queries are like its."""
    option = {"recycled": "full_below", "tokenselect": "reuse_from"}[name]
    selector = dataclasses.replace(_find.tight("select", name), **{option: like})
    pair = [driver(selector, n=2, kind=k, rows=rows) for k in (RefRunner, NativeRunner)]
    few = (
        {g: np.arange(20, dtype=np.int32) for g in (1, 3)} if rows == "head" else {}
    )  # nothing to choose from
    for d in pair:
        for i, n in enumerate((260, 130)):
            d.step([Chunk(i, tokens(n, seed=i))])
            d.runner.store.seal(d.kvs[i], KVPlan(few))
    apart = steps = 0
    for seed in range(3):
        for chunks in (
            [Chunk(0, tokens(4, seed=seed), [-1, 0, 0, 1], [0]), Chunk(1, [seed])],
            [Chunk(0, [5]), Chunk(1, tokens(3, seed=seed))],
            [Chunk(1, tokens(5, seed=seed), [-1, 0, 1, 1, 0], [0, 1, 2])],
            [Chunk(0, tokens(2, seed=seed), commit=[]), Chunk(1, tokens(2))],
        ):
            a, b = (np.concatenate(d.step(chunks)) for d in pair)
            apart += np.abs(a - b).max() > 3e-5
            steps += 1
        for d in pair:
            d.runner.store.seal(d.kvs[seed % 2])
    assert apart <= 1 < steps


def test_recycled_of_no_likeness_reads_all_and_of_any_reads_little() -> None:
    read = {}
    for below in (1.0, -1.0):
        d = driver(dataclasses.replace(_find.tight("select", "recycled"), full_below=below), kv="bfloat16")
        d.step([Chunk(0, tokens(1000))])
        d.runner.store.seal(d.kvs[0])
        read[below] = []
        for t in (1, 2, 3):
            d.step([Chunk(0, [t])])
            read[below].append(d.runner.read_bytes)
    assert read[1.0][0] == read[-1.0][0]  # the first row chooses, and reads everything
    assert read[1.0][1] > 0.6 * read[1.0][0]
    assert read[-1.0][1] < 0.2 * read[-1.0][0]


@pytest.mark.parametrize(
    ("name", "most"), [("quest", 0.20), ("double-sparsity", 0.30), ("sentence-kv", 0.17), ("a2ats", 0.17)]
)
def test_bytes_read(name: str, most: float) -> None:
    """An eighth of the rows, and the index: of what dense attention reads."""
    model = Model(layers=2, heads=4, n_kv=2, dim=64, width=64)
    cls = _find.classes("select")[name]
    got = {}
    for selector in (None, cls(tokens=512, dense_layers=0)):
        d = driver(selector, model, kv="bfloat16")
        d.step([Chunk(0, tokens(4096))])
        d.runner.store.seal(d.kvs[0])
        d.step([Chunk(0, [3])])
        got[selector is None] = d.runner.read_bytes
    assert 0.12 < got[False] / got[True] <= most


def test_layers_that_do_not_run_choose_for_nobody() -> None:
    """Some layers left out, over the same store: what would read by their choice reads all."""
    bound = build(MODEL)
    assert sources(Tidal(choosing=(0,)), bound) == [-1, 0, 0]
    less = dataclasses.replace(
        bound, ops=[op for op in bound.ops if op.kind != "attend" or op.attrs["layer"]]
    )
    assert sources(Tidal(choosing=(0,)), less) == [-1, -1, -1]
    exe = _native.Executor("", 1, 5, 2, 1, 1, 4, [4])
    exe.set_zones(0, 512, [0, 256, 0, 0], 0, 512, [0, 256, 0, 0], [], [], [0, 0], [0, 1])
    with pytest.raises(ValueError, match="one that runs"):
        exe.set_select([-1, 0], 3, 0, [3, 0, 0, 1], 1.0, 0, 0.0, 1, [0, 0, 0], 0, 64, 0, 0, NONE, NONE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({0: [0]}, "each layer"), ({0: [1, 1]}, "itself or before"), ({1: 5}, "does not exist"),
        ({1: -1}, "does not exist"), ({2: 3}, "does not exist"), ({3: [0, 0, 0, 1]}, "always read"),
        ({3: [4, 0, 0, 3]}, "always read"), ({3: [4, 3, 2, 1]}, "always read"),
        ({3: [4, 2, 1, 2]}, "always read"), ({7: 0}, "does not exist"), ({7: 300}, "does not exist"),
        ({4: 0.0}, "always read"), ({5: 3}, "does not exist"), ({8: [510, 0, 0]}, "outside"),
        ({8: [0, 505, 0]}, "outside"), ({12: 1}, "parts of a query"), ({13: ONE}, "each head"),
        ({14: ONE}, "each head"), ({1: 4}, "parts of a query"), ({1: 4, 12: 5}, "parts of a query"),
        ({1: 4, 12: 4}, "each head"), ({1: 4, 7: 5, 12: 1}, "does not exist"),
    ],
)  # fmt: skip
def test_choices_that_point_nowhere_are_refused(change: dict[int, Any], said: str) -> None:
    exe = _native.Executor("", 1, 5, 2, 1, 1, 4, [4, 4])
    exe.set_zones(0, 512, [0, 256, 0, 0], 0, 512, [0, 256, 0, 0], [], [], [0, 0], [0, 1])
    for layer in (0, 1):
        exe.add_op("attend", [0, 0, 0], 1, [], [], [layer, 0], [1.0, 0.0])
    args = [[0, 1], 0, 0, [4, 1, 1, 1], 1.0, 0, 0.5, 1, [0, 64, 0], 128, 512, 16, 0, NONE, NONE]
    exe.set_select(*args)
    for i, value in change.items():
        args[i] = value
    with pytest.raises(ValueError, match=said):
        exe.set_select(*args)


def test_an_index_that_no_kernel_reads_is_refused() -> None:
    class Wide(Quest):
        def fields(self, page: int, dim: int) -> tuple[Field, ...]:
            return (Field("lo", "float32", (1, dim), rows=-1), Field("hi", "float32", (1, dim), rows=-1))

    class Other(Quest):
        choice = Choice("another")

    for selector in (Wide(), Other()):
        with pytest.raises(UnsupportedError, match="no native choice"):
            driver(selector)


def test_numbers_that_are_none_do_no_harm() -> None:
    """Queries and keys that are not finite: something is read, and nothing out of bounds."""
    for selector in (Quest(tokens=32, dense_layers=0), Tidal(tokens=32, choosing=(0,))):
        d = driver(selector)
        d.step([Chunk(0, tokens(300))])
        d.runner.store.seal(d.kvs[0])
        store = d.runner.store
        for slab in store.sealed_arena.slabs:
            slab.view(np.uint16)[:, ::97] = 0x7FC0
        d.step([Chunk(0, tokens(2), commit=[])])
        got = d.runner.exe.chosen(0, 0)
        assert len(set(got)) == len(got) <= max(3, 2)
        assert all(0 <= p < 19 for p in got)
