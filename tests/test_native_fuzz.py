"""The native runner under random steps, and under input that must be refused without a crash.

Also run under AddressSanitizer and UndefinedBehaviorSanitizer (`make sanitize`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pronghorn.methods.kvfmt.int8 import Int8 as Int8KV
from pronghorn.model.rope import Rope
from pronghorn.ops.cpu import _native
from pronghorn.ops.ref import Ops
from pronghorn.run.native import NativeRunner
from pronghorn.run.ref import RefRunner
from pronghorn.types import Rows
from tests.native_tapes import Chunk, Driver, Model, build, store_for, tokens

ISAS = _native.isas()


def native(m: Model, n_seqs: int = 1, threads: int = 2, seed: int = 0, **store) -> Driver:
    bound = build(m, seed)
    return Driver(NativeRunner(bound, store_for(bound, Ops("float32"), **store), threads), n_seqs)


def rows_of(n: int, **change) -> Rows:
    """A chain of n rows of sequence 0 from position 0, with columns replaced."""
    chain = np.arange(n, dtype=np.int32)
    zero = np.zeros(n, np.int32)
    return Rows(zero, chain, chain + np.int32(1), zero, chain - np.int32(1), zero)._replace(**change)


# ---------------------------------------------------------------------------------- valid steps


def random_model(rng: np.random.Generator) -> Model:
    """Any combination of what the tapes of `native_tapes` can vary, with odd and small sizes."""
    n_kv = int(rng.integers(1, 4))
    dim = int(rng.choice([2, 3, 4, 6, 7, 8, 11, 16, 17, 33, 130]))
    experts = int(rng.choice([0, 0, 1, 3, 6]))
    return Model(
        layers=int(rng.integers(1, 4)), heads=n_kv * int(rng.integers(1, 6)), n_kv=n_kv, dim=dim,
        width=int(rng.integers(1, 70)), hidden=int(rng.integers(1, 90)), vocab=int(rng.integers(2, 150)),
        tied=bool(rng.integers(2)), bias=bool(rng.integers(2)), layer_norm=bool(rng.integers(2)),
        head_norm=bool(rng.integers(2)), wpe=bool(rng.integers(2)),
        rope=Rope(dim // 4 * 4, 500.0, "dynamic", 2.0, 16) if dim > 3 and rng.integers(2) else None,
        window=int(rng.choice([0, 1, 7, 40])), softcap=float(rng.choice([0.0, 5.0])),
        fn=str(rng.choice(["silu", "gelu", "gelu_tanh", "relu"])), plain_mlp=bool(rng.integers(2)),
        experts=experts, top_k=int(rng.integers(1, experts + 1)) if experts else 2,
        renorm=bool(rng.integers(2)), scale=float(rng.choice([1.0, 2.5])),
    )  # fmt: skip


def random_chunk(rng: np.random.Generator, seq: int, m: Model) -> Chunk:
    """A prompt's chunk, a single token or a tree, some path of it committed."""
    n = int(rng.choice([1, 1, 2, 5, 17, 40, 90]))
    ids = tokens(n, m.vocab, int(rng.integers(1 << 30)))
    if n > 40 or rng.integers(2):
        return Chunk(seq, ids, commit=list(range(int(rng.integers(0, n + 1)))))
    parent = [int(rng.integers(max(-1, i - 7), i)) for i in range(n)]
    path = [int(rng.integers(n))]
    while parent[path[0]] >= 0:
        path.insert(0, parent[path[0]])
    return Chunk(seq, ids, parent, path)


@pytest.mark.parametrize("seed", range(24))
def test_random_steps_equal_the_oracle(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    monkeypatch.setenv("PRONGHORN_ISA", ISAS[seed % len(ISAS)])
    m = random_model(rng)
    int8 = seed % 4 == 3
    wide = "float32" if int8 else "float64"  # codes must come from equally rounded keys
    store = {"fmt": Int8KV()} if int8 else {"rows": str(rng.choice(["seq", "layer", "head"]))}
    bound = build(m, seed)
    ref = Driver(RefRunner(bound, store_for(bound, Ops(wide), **store)), 4)
    fast = Driver(NativeRunner(bound, store_for(bound, Ops("float32"), **store), 1 + int(rng.integers(3))), 4)
    for _ in range(6):
        some = rng.permutation(4)[: int(rng.integers(1, 5))]
        chunks = [random_chunk(rng, int(s), m) for s in some]
        if m.wpe and max(kv.next_pos for kv in ref.kvs) > 400:
            break
        a, b = ref.step(chunks), fast.step(chunks)
        for x, y in zip(a, b, strict=True):
            size = max(1.0, float(np.abs(x).max()))
            assert np.abs(x - y).max() < (2e-2 if int8 else 2e-4) * size, m
        for s in some:
            if rng.integers(2):
                for d in (ref, fast):
                    d.runner.store.seal(d.kvs[int(s)])


def test_a_long_context():
    """40,000 committed rows, float32 against float64."""
    m = Model(layers=1, heads=2, n_kv=1, dim=8, width=16, hidden=16, vocab=50)
    bound = build(m)
    ref = Driver(RefRunner(bound, store_for(bound, Ops("float64"))), 1)
    fast = native(m)
    n = 40_000
    rng = np.random.default_rng(0)
    k, v = rng.normal(size=(2, n, 8))
    for d in (ref, fast):
        store, kv = d.runner.store, d.kvs[0]
        store.reserve(kv, n)
        pages = -(-n // 16)
        wide = np.zeros((2, pages * 16, 8))
        wide[:, :n] = k, v
        paged = wide.reshape(2, pages, 16, 8)
        kt = np.ascontiguousarray(paged[0].transpose(0, 2, 1), np.float32)
        lay = store.open_layout
        store.open_arena.write(kv.open, lay.where(0, 0, 0), "float32", kt)
        store.open_arena.write(kv.open, lay.where(0, 0, 1), "float32", paged[1].astype(np.float32))
        store.extend(kv, range(n))
    for ids in ([3], tokens(20, 50)):
        chunk = [Chunk(0, ids)]
        assert np.abs(ref.step(chunk)[0] - fast.step(chunk)[0]).max() < 3e-5


# ---------------------------------------------------------------------------------- refusals


def test_random_rows_never_crash():
    """Columns with random entries: refused, or run to finite logits."""
    d = native(Model(wpe=True), 3)
    d.step([Chunk(i, tokens(20 + i)) for i in range(3)])
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        n = int(rng.integers(1, 12))
        rows = rows_of(n, want=np.ones(n, np.int32))
        for name in rng.choice(["ids", "pos", "seq", "parent", "want"], int(rng.integers(1, 4))):
            column = getattr(rows, name).copy()
            high = {"ids": 103, "pos": 520, "seq": 4, "parent": n, "want": 2}[name]
            extreme = [np.iinfo(np.int32).min, np.iinfo(np.int32).max, int(rng.integers(-2, high))]
            column[rng.integers(n)] = rng.choice(extreme)
            rows = rows._replace(**{name: column})
        try:
            out = d.runner.run(rows, d.kvs, False)
            assert np.isfinite(out.logits).all()
        except ValueError:
            refused += 1
    assert 50 < refused < 300


@pytest.mark.parametrize("name", ["ids", "pos", "seq", "parent", "want"])
def test_columns_of_another_dtype_or_length_are_refused(name):
    d = native(Model())
    rows = rows_of(4)
    with pytest.raises(TypeError):
        d.runner.run(rows._replace(**{name: getattr(rows, name).astype(np.int64)}), d.kvs, False)
    with pytest.raises((ValueError, TypeError)):
        d.runner.run(rows._replace(**{name: np.zeros(5, np.int32)}), d.kvs, False)


@pytest.mark.parametrize("isa", ISAS)
def test_steps_without_wanted_rows_or_rows(isa, monkeypatch):
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    d = native(Model(), 2)
    assert d.runner.run(rows_of(0), d.kvs, False).logits.shape == (0, 101)
    assert d.runner.run(rows_of(0), [], False).logits.shape == (0, 101)
    assert d.runner.run(rows_of(9), d.kvs, False).logits.shape == (0, 101)


def test_too_many_rows_are_refused():
    """A phase shares out fewer than 2^24 items; here a row would go to 16 experts."""
    d = native(Model(layers=1, experts=16, top_k=16, width=4, hidden=2))
    with pytest.raises(ValueError, match="too many rows"):
        d.runner.run(rows_of(1 << 20), d.kvs, False)
    with pytest.raises(ValueError, match="too many rows"):
        d.runner.run(rows_of((1 << 20) + 1), d.kvs, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("open_addr", np.zeros(2, np.int64)),
        ("open_addr", np.zeros(0, np.uint64)),
        ("open_addr", np.zeros(2, np.uint64)),
        ("open_pos", np.zeros(32, np.int64)),
        ("open_pos", np.zeros(3, np.int32)),
        ("open_pos", np.zeros((32, 2), np.int32)[:, 0]),
        ("table", np.zeros((1, 4), np.int32)),
        ("table", np.zeros((2, 4), np.int64)),
        ("table", np.zeros((1, 3), np.int64)),
        ("table", np.array([[0, 0, 0, 1]], np.int64)),
        ("table", np.array([[1, 1, 1, -1]], np.int64)),
        ("table", np.array([[1, 1, 1, 1 << 40]], np.int64)),
        ("n_open", -1),
        ("n_open", 33),
    ],
)
def test_damaged_sequences_are_refused(name, value):
    d = native(Model())
    d.step([Chunk(0, tokens(20))])
    setattr(d.kvs[0], name, value)
    with pytest.raises(ValueError, match="a sequence"):
        d.runner.run(rows_of(1), d.kvs, False)


def test_commits_of_another_shape_are_refused():
    d = native(Model())
    row, slot = np.zeros(1, np.int32), np.zeros(1, np.int32)
    addr = np.ones(1, np.uint64)
    with pytest.raises(ValueError, match="did not have"):  # before any step
        d.runner.commit(row, addr, row, slot)
    d.step([Chunk(0, tokens(5), commit=[])])
    with pytest.raises(ValueError, match="does not exist"):
        d.runner.commit(row, addr * np.uint64(0), row, slot)
    with pytest.raises(ValueError, match="lengths"):
        d.runner.commit(row, addr, row, np.zeros(2, np.int32))
    with pytest.raises(TypeError):
        d.runner.commit(row.astype(np.int64), addr, row, slot)


def test_a_planned_runner_takes_no_more():
    exe, no_floats = native(Model()).runner.exe, np.zeros(0, np.float32)
    calls = [
        lambda: exe.add_matrix(0, np.ones((2, 2), np.float32), no_floats),
        lambda: exe.add_rows(0, np.ones((2, 2), np.float32), no_floats),
        lambda: exe.add_vector(np.ones(2, np.float32)),
        lambda: exe.add_table(np.ones(2, np.float32), 2, 1.0),
        lambda: exe.add_op("add", [0, 0], 1, [], [], [], []),
        lambda: exe.set_select(
            [0, 1], 0, 0, [3, 0, 0, 1], 1.0, 0, 0.0, 1, [0, 0, 0], 0, 64, 0, 0, no_floats, no_floats
        ),
        lambda: exe.finish(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="finish"):
            call()
    fresh = _native.Executor("", 1, 5, 1, 1, 1, 4, [4])
    none = np.zeros(0, np.int32)
    with pytest.raises(ValueError, match="finish"):
        fresh.run(none, none, none, none, none, none, [], [], [], np.zeros((0, 5), np.float32), [], [], [])


@pytest.mark.parametrize("op", [
    ("tap", [0], 1 << 20, [], [], [0], []), ("norm", [0], 7, [], [0], [4, 0], [1e-5]),
    ("add", [0, 9], 0, [], [], [], []), ("linear", [0], 1, [3], [], [], []),
    ("rope", [0], 1, [], [], [0, 1], []), ("tap", [-1], -1, [], [], [0], []),
    ("attend", [0, 0, 0], 1, [], [], [4, 0], [1.0, 0.0]),
])  # fmt: skip
def test_tapes_that_point_nowhere_are_refused(op):
    exe = _native.Executor("", 1, 5, 1, 1, 1, 4, [4, 4])
    exe.set_zones(0, 512, [0, 256, 0, 0], 0, 512, [0, 256, 0, 0], [], [], [0], [0])

    def plan() -> None:
        exe.add_op(*op)
        exe.finish()

    with pytest.raises((ValueError, IndexError)):
        plan()


# ---------------------------------------------------------------------------------- threads


def test_two_python_threads_cannot_share_a_runner():
    d = native(Model())
    done, errors = [], []

    def loop() -> None:
        for _ in range(30):
            try:
                d.runner.run(rows_of(300), d.kvs, False)
                done.append(1)
            except RuntimeError as e:  # noqa: PERF203
                errors.append(str(e))

    threads = [threading.Thread(target=loop) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert done
    assert all("one step at a time" in e for e in errors)
    assert len(done) + len(errors) == 90


def test_many_runners_at_once_from_many_threads():
    one = native(Model(), threads=1)
    want = one.step([Chunk(0, tokens(60))])[0]
    answers: dict[int, np.ndarray] = {}

    def loop(i: int) -> None:
        for _ in range(4):
            d = native(Model())
            for t in tokens(60):
                answers[i] = d.step([Chunk(0, [t])])[0]

    threads = [threading.Thread(target=loop, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert len(answers) == 8
    assert all(np.array_equal(a[0], want[-1]) for a in answers.values())


def test_the_gil_is_free_during_a_step():
    d = native(Model(layers=4, width=256, hidden=512), threads=1)
    ticks = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    t = threading.Thread(target=tick)
    t.start()
    begin = time.perf_counter()
    d.runner.run(rows_of(3000), d.kvs, False)
    end = time.perf_counter()
    stop.set()
    t.join()
    inside = [x for x in ticks if begin + 0.1 * (end - begin) < x < end - 0.1 * (end - begin)]
    assert len(inside) >= 3


ALONE = """
import os, signal, sys, threading, time
import numpy as np
from tests.native_tapes import Chunk, Model, tokens
from tests.test_native_fuzz import native, rows_of
{body}
"""


def alone(body: str, timeout: float = 90) -> subprocess.CompletedProcess[str]:
    """The code in a process of its own; a hang is a failure."""
    code = ALONE.format(body=body)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, timeout=timeout, capture_output=True, text=True
    )


def test_narrow_heads_read_inside_their_page():
    """Values are read 16 at a time: for fewer than 8 channels that leaves the page well before its last
    row. Here nothing may be read behind the page."""
    done = alone("""
import ctypes, mmap
from pronghorn.ops.cpu import _native
memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + mmap.PAGESIZE
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0) == 0
for isa in _native.isas():
    os.environ["PRONGHORN_ISA"] = isa
    for dim in (1, 2, 3, 5, 7, 9, 17):
        d = native(Model(layers=1, heads=1, n_kv=1, dim=dim, wpe=True))
        d.step([Chunk(0, tokens(16))])
        want = d.step([Chunk(0, [5], commit=[])])[0]
        size = d.runner.store.open_layout.block
        ctypes.memmove(end - size, int(d.kvs[0].open_addr[0]), size)
        d.kvs[0].open_addr = np.array([end - size], np.uint64)
        assert np.array_equal(d.step([Chunk(0, [5], commit=[])])[0], want)
print("inside")
""")
    assert (done.returncode, done.stdout) == (0, "inside\n"), done.stderr


def test_the_child_of_a_fork_works_and_ends():
    """Threads do not follow into a child: it works alone, and does not wait for them at its end."""
    done = alone("""
d = native(Model(), threads=3)
want = d.step([Chunk(0, tokens(50), commit=[])])[0]
child = os.fork()
got = d.step([Chunk(0, tokens(50), commit=[])])[0]
assert np.array_equal(want, got)
if child == 0:
    new = native(Model(), threads=2)
    assert np.array_equal(new.step([Chunk(0, tokens(50))])[0], want)
    del new, d
    print("child", flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "child\n"


def test_the_interpreter_ends_with_a_live_team():
    done = alone("d = native(Model(), threads=3); d.step([Chunk(0, tokens(50))]); print('end')")
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


def test_runners_come_and_go():
    """Teams that are parked, spinning, or were never used end at once."""
    begin = time.perf_counter()
    for i in range(40):
        d = native(Model(layers=1), threads=3)
        if i % 3:
            d.step([Chunk(0, tokens(3))])
        if i % 3 == 2:
            time.sleep(0.002)
    assert time.perf_counter() - begin < 30


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="needs address space without end")
def test_a_system_out_of_threads():
    """The error is raised, not the process ended."""
    done = alone("""
import resource
from pronghorn.ops.cpu import _native
size = 512 << 20  # of a thread's stack: a few fill the address space
threading.stack_size(0)
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
try:
    _native.Executor("", 1000, 5, 1, 1, 1, 4, [4])
except RuntimeError as e:
    print("refused")
""")
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def test_ctrl_c_is_honoured_after_the_step():
    done = alone("""
d = native(Model(layers=4, width=256, hidden=512), threads=1)
threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    for _ in range(1000):
        d.runner.run(rows_of(1500), d.kvs, False)
    print("never")
except KeyboardInterrupt:
    print(d.step([Chunk(0, tokens(2))])[0].shape)
""")
    assert done.stdout == "(2, 101)\n", done.stderr


# ---------------------------------------------------------------------------------- not finite


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("zone", ["open", "sealed"])
@pytest.mark.parametrize("m", [Model(window=9, softcap=4.0), Model(experts=4, top_k=4)])
def test_keys_that_are_not_finite(m, zone, bad, isa, monkeypatch):
    """No hang, no crash; other sequences are untouched; NaN shows in the logits of its own."""
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    clean, hurt = native(m, 2), native(m, 2)
    for d in (clean, hurt):
        d.step([Chunk(0, tokens(40)), Chunk(1, tokens(30))])
        if zone == "sealed":
            d.runner.store.seal(d.kvs[0])
    store, kv = hurt.runner.store, hurt.kvs[0]
    lay, arena = (store.open_layout, store.open_arena)
    blocks = kv.open
    if zone == "sealed":
        lay, arena, blocks = store.sealed_layout, store.sealed_arena, kv.sealed[0].blocks
    page = arena.read(blocks[2:3], lay.where(0, 0, 0), "float32", (m.dim, 16))
    page[0, 0, 5] = bad  # row 37, seen by the window of the next
    arena.write(blocks[2:3], lay.where(0, 0, 0), "float32", page)
    chunks = [Chunk(0, tokens(2)), Chunk(1, tokens(2))]
    a, b = clean.step(chunks), hurt.step(chunks)
    assert np.array_equal(a[1], b[1])
    if np.isnan(bad):
        assert np.isnan(b[0]).any()


class Layer:
    """One op between an embedding (float32 rows given by the test) and a tap, run natively."""

    def __init__(self, x: np.ndarray, isa: str, ops: list[tuple], n_regs: int, vecs=(), mats=()):
        n, width = x.shape
        self.x, self.n = x.astype(np.float32, order="C", copy=True), n
        none = np.zeros(0, np.float32)
        self.exe = exe = _native.Executor(isa, 2, n, 1, 1, 1, 4, [width] * n_regs)
        exe.add_rows(0, self.x, none)
        for kind, w, scale in mats:
            exe.add_matrix(kind, w, scale)
        for v in vecs:
            exe.add_vector(np.asarray(v, np.float32))
        exe.set_zones(0, 512, [0, 256, 0, 0], 0, 512, [0, 256, 0, 0], [], [], [0], [0])
        exe.add_op("embed", [], 0, [0], [], [], [1.0])
        for op in ops:
            exe.add_op(*op)
        exe.add_op("tap", [n_regs - 1], -1, [], [], [0], [])
        exe.finish()

    def run(self) -> np.ndarray:
        ids = np.arange(self.n, dtype=np.int32)
        zero = np.zeros(self.n, np.int32)
        out = np.full(self.x.shape, 7, np.float32)

        class Empty:
            open_addr, open_pos, n_open = np.zeros(0, np.uint64), np.zeros(0, np.int32), 0
            table, bias = np.zeros((1, 4), np.int64), np.zeros(1, np.int64)

        logits = np.zeros((0, self.n), np.float32)
        self.exe.run(ids, ids, ids, zero, ids - 1, zero, [Empty()], [], [], logits, [out], [], [])
        return out


def elementwise(kind: str, fn: int, x: np.ndarray, isa: str) -> np.ndarray:
    return Layer(x.reshape(-1, 1), isa, [(kind, [0], 1, [], [], [fn], [])], 2).run()[:, 0]


def ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    return np.abs(got.astype(np.float64) - want) / np.spacing(np.abs(want).astype(np.float32))


@pytest.mark.parametrize("isa", ISAS)
def test_activations_over_the_whole_range(isa):
    """Against float64: silu (our exp), both GELUs (erf and tanh) and relu."""
    rng = np.random.default_rng(0)
    x = np.concatenate([
        np.linspace(-100, 100, 20001), rng.normal(size=5000), np.geomspace(1e-45, 3e38, 3000),
        -np.geomspace(1e-45, 3e38, 3000), [0.0, -0.0],
    ]).astype(np.float32)  # fmt: skip
    torch = pytest.importorskip("torch")
    t = torch.from_numpy(x.astype(np.float64))
    gelu = torch.nn.functional.gelu
    want = [torch.nn.functional.silu(t), gelu(t), gelu(t, approximate="tanh"), t.clamp(min=0)]
    for fn, w in enumerate(want):
        got = elementwise("act", fn, x, isa)
        w = w.numpy()
        assert np.isfinite(got).all()
        # relative to the input where the output cancels against it, as any float32 formula does
        assert (np.abs(got - w) <= 4e-7 * np.maximum(np.abs(w), np.minimum(np.abs(x), 20)) + 1e-36).all(), fn
        assert ulps(got, w)[x > 0.01].max() < 4


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fn", range(3))
def test_nan_stays_nan(fn, isa):
    x = np.array([np.nan, 1.0, -np.nan, 2.0], np.float32)
    got = elementwise("act", fn, x, isa)
    assert list(np.isnan(got)) == [True, False, True, False]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_nan_logits_stay_nan(softcap, isa, monkeypatch):
    """A capped NaN must not become the smallest logit."""
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    bound = build(Model(layers=1, softcap=softcap, bias=True))
    bound.vecs["norm"][:] = np.nan  # after the checks of `bind`
    d = Driver(NativeRunner(bound, store_for(bound, Ops("float32")), 2), 1)
    assert np.isnan(d.step([Chunk(0, tokens(3))])[0]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mode", [0, 1])
def test_norms_of_extreme_rows(mode, isa):
    rows = [np.zeros(37), np.full(37, 1e-30), np.full(37, 1e-42), np.arange(37) * 1e17, np.full(37, 5.0)]
    x = np.array(rows, np.float32)
    ops = [("norm", [0], 1, [], [0], [37, mode], [1e-5])]
    got = Layer(x, isa, ops, 2, vecs=[np.ones(37)]).run()
    y = x.astype(np.float64)
    y = y - mode * y.mean(axis=1, keepdims=True)
    want = y / np.sqrt((y * y).mean(axis=1, keepdims=True) + 1e-5)
    assert np.abs(got - want).max() < 1e-5


@pytest.mark.parametrize("isa", ISAS)
def test_activations_are_rounded_to_bfloat16_to_nearest_even(isa):
    import ml_dtypes

    bits = np.random.default_rng(0).integers(0, 1 << 32, 3000, dtype=np.uint32)
    half = (np.arange(200, dtype=np.uint32) + 0x3F80) << 16 | 0x8000  # ties
    x = np.concatenate([bits.view(np.float32), half.view(np.float32),
                        np.float32([np.inf, -np.inf, 3.4e38, -3.4e38, 0.0])])  # fmt: skip
    x = x[~np.isnan(x) & ~((np.abs(x) < 1.2e-38) & (x != 0))]  # the BF16 instructions take denormals as 0
    with np.errstate(over="ignore"):
        want = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    one = np.ones((1, 1), ml_dtypes.bfloat16).view(np.uint16)
    layer = Layer(x.reshape(-1, 1), isa, [("linear", [0], 1, [1], [], [], [])], 2,
                  mats=[(1, one, np.zeros(0, np.float32))])  # fmt: skip
    assert np.array_equal(layer.run()[:, 0], want)
    nan = Layer(np.float32([[np.nan]]), isa, [("linear", [0], 1, [1], [], [], [])], 2,
                mats=[(1, one, np.zeros(0, np.float32))])  # fmt: skip
    assert np.isnan(nan.run()).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("renorm", [True, False])
def test_every_expert_and_ties(renorm, isa, monkeypatch):
    """A router of zeros: all experts equally likely, ties to the lower number, as the oracle."""
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    for top_k in (1, 3, 4):
        bound = build(Model(experts=4, top_k=top_k, renorm=renorm))
        for key, (packed, _) in bound.mats.items():
            if "router" in key:
                packed.fields["w"][:] = 0
        ref = Driver(RefRunner(bound, store_for(bound, Ops("float64"))), 1)
        fast = Driver(NativeRunner(bound, store_for(bound, Ops("float32")), 2), 1)
        chunk = [Chunk(0, tokens(25))]
        assert np.abs(ref.step(chunk)[0] - fast.step(chunk)[0]).max() < 3e-5


def test_the_callers_denormals_are_left_alone():
    d = native(Model())
    tiny = np.float32(1e-40)
    before = tiny * np.float32(0.5)
    d.step([Chunk(0, tokens(50))])
    assert before != 0
    assert tiny * np.float32(0.5) == before
