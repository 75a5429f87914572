"""The native runner: one C++ call per step executes the whole tape.

Results do not depend, bit for bit, on which other rows are in a step, on how a prompt is cut into
chunks, on the shape of a draft tree or on the number of threads: every output is one chain of sums in
an order of its own. Matrices kept in bfloat16 take activations rounded to bfloat16 and sum in float32.
Matrices of small integers take activations as integers, and each group's sum is exact. Attention is
float32 over a float32 store; over bfloat16 its products take queries and weights as bfloat16.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import UnsupportedError
from pronghorn.kv.layout import PAGE, Layout, coded_fields, itemsize, n_kept, n_spikes
from pronghorn.kv.look import Look, room
from pronghorn.kv.paged import FileArena
from pronghorn.kv.store import SeqKV, Store
from pronghorn.model.bind import Bound
from pronghorn.model.tape import Op
from pronghorn.nulls import AsStored
from pronghorn.ops.cpu import _native
from pronghorn.ops.panels import numbers
from pronghorn.ops.ref import Ops
from pronghorn.ops.values import dense
from pronghorn.run.base import sources
from pronghorn.types import Codes, Field, Ints, Rows, StepOut

KINDS = {"float32": 0, "bfloat16": 1, "int8": 2}  # of stored KV
CODED = 3
WEIGHTS = {"float32": 0, "bfloat16": 1, "float16": 2, "float8": 3}
FIELDS: dict[str, dict[str, str]] = {  # what a choice goes by, and the dtypes
    "bounds": {"lo": "bfloat16", "hi": "bfloat16"}, "dots": {"mean": "bfloat16"},
    "labels": {"channel": "uint8", "label": "int8", "unit": "float32"}, "keys": {},
    "codes": {"code": "uint8"},
}  # fmt: skip
HEADS = ("max", "sum", "vote")
KEEP = ("", "all", "own")
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
WAY_OUT = "run this model with the reference runner, or store it otherwise"
NO_FLOATS = np.zeros(0, np.float32)
NO_INTS = np.zeros(0, np.int32)
KEPT = "choice"  # in `SeqKV.kept`
KEPT_ROWS = 64  # of logits, at most, whose memory stays from step to step


class NativeRunner:
    """See `run.base.Runner`. threads: 0 takes every physical core that the process may use, see
    `usable_cores`.

    Matrices may be "float32", "bfloat16", "float16", "float8" (E4M3 as uint8 with scale (n_out,) float32),
    which are packed at load, and "codes" (`ops.panels`), which are read where they lie. Raises
    `UnsupportedError` for another kind of matrix or of stored KV.

    beside: runners whose threads this one uses, and whose matrices where they are the same. They work in
    turns.

    One step at a time: a second thread that calls while one runs gets a `RuntimeError`. In the child of
    a fork, where the team's threads are not, steps run on the calling thread alone.
    """

    def __init__(
        self, bound: Bound, store: Store, threads: int = 0, beside: Sequence[NativeRunner] = ()
    ) -> None:  # fmt: skip
        self.bound, self.store = bound, store
        self.ops: Ops = store.ops
        if self.ops.torch is not None:
            raise UnsupportedError(f"the native runner's store lives in NumPy memory; {WAY_OUT}")
        self.exe: _native.Executor = _native.Executor(
            os.environ.get("PRONGHORN_ISA", ""), threads or usable_cores(), bound.n_vocab,
            bound.n_layers, bound.n_heads, bound.n_kv, bound.head_dim, list(bound.widths),
            beside[0].exe if beside else None,
        )  # fmt: skip
        self.isa: str = os.environ.get("PRONGHORN_ISA", "") or _native.isa()  # in use
        self._mats: dict[str, int] = {}
        self._vecs: dict[str, int] = {}
        self._taps: list[tuple[str, int]] = []  # name and width of each tap
        self._logits = np.empty((0, bound.n_vocab), np.float32)
        self.seen: list[NDArray[np.uint8]] = []
        for rope in bound.ropes:
            freq = NO_FLOATS if rope.varies else rope.inv_freq(0)
            self.exe.add_table(freq, rope.dim // 2, rope.gain)
        self._varying = [rope for rope in bound.ropes if rope.varies]
        self._multiplied = {p.key for op in bound.ops if op.kind != "embed" for p in op.params}
        self._load_matrices(beside)
        for op in bound.ops:
            self._add(op)
        self._set_zones()
        if not store.selector.dense:
            self._set_choice()
        self.exe.finish()

    @property
    def n_threads(self) -> int:
        return int(self.exe.n_threads)

    @property
    def read_bytes(self) -> int:
        """Bytes of stored keys and values, and of the step's own, that attention read in the last step. Pages
        that sequences have in common count once where they were read once."""
        return int(self.exe.kv_bytes)

    # ------------------------------------------------------------------ load

    def _load_matrices(self, beside: Sequence[NativeRunner]) -> None:
        whole = {p.key for op in self.bound.ops if op.kind in ("embed", "moe") for p in op.params}
        for key in self.bound.mats:
            same = next((r for r in beside if self._shares(key, r)), None)
            if same is not None:
                self._mats[key] = self.exe.add_shared(same.exe, same._mats[key])
                continue
            packed, _ = self.bound.mats[key]
            if "order" in packed.fields and key in whole:  # these kernels take inputs as they come
                packed = AsStored().pack(dense(packed))
            scale = np.ascontiguousarray(packed.fields.get("scale", NO_FLOATS), np.float32).reshape(-1)
            if packed.kind == "codes":
                grid, panels = packed.grid, packed.fields["panels"]
                assert grid is not None
                self._mats[key] = self.exe.add_codes(
                    panels, scale, packed.shape[0], packed.shape[1], *numbers(grid)
                )
                if "order" in packed.fields:
                    self.exe.set_order(self._mats[key], packed.fields["order"])
                continue
            if packed.kind not in WEIGHTS:
                raise UnsupportedError(
                    f"matrix {key!r} is stored as {packed.kind!r}, for which there is no native kernel; "
                    f"{WAY_OUT}"
                )
            w = np.asarray(packed.fields["w"])
            w = w.view(np.uint16) if w.dtype.itemsize == 2 else w
            if key in self._multiplied:
                self._mats[key] = self.exe.add_matrix(WEIGHTS[packed.kind], w, scale)
            else:
                self._mats[key] = self.exe.add_rows(WEIGHTS[packed.kind], np.ascontiguousarray(w), scale)

    def _shares(self, key: str, other: NativeRunner) -> bool:
        fits = key in other._multiplied or key not in self._multiplied  # rows as they lie multiply nothing
        return fits and self.bound.mats.same(key, other.bound.mats)

    def _vector(self, key: str) -> int:
        if key not in self._vecs:
            flat = np.ascontiguousarray(self.bound.vecs[key], np.float32).reshape(-1)
            self._vecs[key] = self.exe.add_vector(flat)
        return self._vecs[key]

    def _add(self, op: Op) -> None:
        a = op.attrs
        n_mats = {"embed": 1, "linear": 1, "head": 1, "moe": len(op.params)}.get(op.kind, 0)
        mats = [self._mats[p.key] for p in op.params[:n_mats]]
        vecs = [self._vector(p.key) for p in op.params[n_mats:]]
        ints: list[int] = []
        floats: list[float] = []
        if op.kind == "embed":
            floats = [a["scale"]]
        elif op.kind == "norm":
            ints, floats = [a["group"], int(a["mode"] == "layer")], [a["eps"]]
        elif op.kind == "rope":
            ints = [a["rope"], a["n_heads"]]
        elif op.kind == "attend":
            ints, floats = [a["layer"], a["window"]], [a["scale"], a["softcap"]]
        elif op.kind in ("act", "glu"):
            ints = [_activation(a["fn"])]
        elif op.kind == "scale":
            floats = [a["by"]]
        elif op.kind == "moe":
            ints = [a["top_k"], int(a["renorm"]), _activation(a["fn"]), a["width"]]
        elif op.kind == "head":
            floats = [a["scale"], a["softcap"]]
        elif op.kind == "tap":
            ints = [len(self._taps)]
            self._taps.append((a["name"], self.bound.widths[op.ins[0]]))
        self.exe.add_op(op.kind, list(op.ins), op.out, mats, vecs, ints, floats)

    def _set_zones(self) -> None:
        store = self.store
        pairs = [(i, h) for i in range(store.n_layers) for h in range(store.n_kv)]
        where = [store.group_of[p] for p in pairs]
        codes = store.fmt.codes
        self.exe.set_zones(
            *_zone(store.open_layout, store.head_dim, ()), *_zone(store.sealed_layout, store.head_dim, codes),
            [_numbers(c, store.head_dim) for c in codes], [list(c.levels) for c in codes],
            [g for g, _ in where], [i for _, i in where],
        )  # fmt: skip
        lay = store.sealed_layout
        if store.under:
            beside, *more = lay.fields[lay.index_fields.stop :]
            if beside != Field("by", "float32", (2, PAGE), rows=1) or len(more) != 1:
                raise UnsupportedError(f"no native kernel for what lies on pages of other layers; {WAY_OUT}")
            self.exe.set_upon(
                [lay.rows[i] for _, i in where], [lay.more[i] for _, i in where], more[0].shape[1], lay.block
            )

    def _set_choice(self) -> None:
        """Tell how pages are chosen. Raises `UnsupportedError` for an index that the kernels cannot read."""
        selector, lay = self.store.selector, self.store.sealed_layout
        c = selector.choice
        held = {f.name: (lay.where(0, 0, i), f) for i, f in list(enumerate(lay.fields))[self.store.n_own :]}
        wanted = FIELDS.get(c.score, {"no such score": ""})
        found = [held[name] for name in wanted if name in held]
        n = found[0][1].shape[0] if found else 1
        shapes = {"channel": (n,), "label": (n, PAGE), "unit": (n,), "code": (n, PAGE)}
        fits = [
            f.dtype == wanted[f.name] and f.shape == shapes.get(f.name, (n, self.store.head_dim))
            for _, f in found
        ]
        if len(found) < len(wanted) or not all(fits):
            raise UnsupportedError(f"no native choice by {c.score!r} of the fields {list(held)}; {WAY_OUT}")
        turn, book, part = self._books() if c.score == "codes" else (NO_FLOATS, NO_FLOATS, 0)
        self.exe.set_select(
            sources(selector, self.bound), list(FIELDS).index(c.score), HEADS.index(c.heads),
            [c.pages, c.first, c.last, c.span], c.cover, KEEP.index(c.keep), c.like, n,
            [*(at for at, _ in found), 0, 0, 0][:3],
            lay.index, lay.block,
            sum(itemsize(f.dtype) * math.prod(f.shape) for _, f in found), part, turn, book,
        )  # fmt: skip

    def _books(self) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
        """Of every head, one after the other: what turns queries (dim, width up to 16s), and centroids of
        groups with a channel's values side by side (groups, part, codes); part."""
        store, selector, turns, books, part = self.store, self.store.selector, [], [], 0
        for layer, head in np.ndindex(store.n_layers, store.n_kv):
            own: Any = selector.of(store.tables, layer, head)
            found = own.books(store.head_dim)
            turns.append(np.pad(found.unturn, ((0, 0), (0, -found.unturn.shape[1] % 16))))
            books.append(np.swapaxes(found.book, 1, 2))
            part = found.book.shape[2]
        flat = (np.concatenate([a.reshape(-1) for a in every]) for every in (turns, books))
        turn, book = (np.ascontiguousarray(a, np.float32) for a in flat)
        return turn, book, part

    # ------------------------------------------------------------------ run

    def run(self, rows: Rows, kvs: Sequence[SeqKV], taps: bool) -> StepOut:
        """Raises `ValueError` for rows that would read out of bounds."""
        n = rows.n
        freqs: list[NDArray[np.float32]] = []
        which: list[Ints] = []
        for rope in self._varying:
            spans, of = np.unique(rows.span, return_inverse=True)
            freqs.append(np.stack([rope.inv_freq(int(s)) for s in spans]))
            which.append(of.reshape(-1).astype(np.int32))
        logits = self._room(int(np.count_nonzero(rows.want)))
        out: dict[str, NDArray[Any]] = {}
        views: list[NDArray[np.float32]] = []
        if taps and self._taps:
            out, views = self._tap_arrays(n)
        arena = self.store.sealed_arena
        self.seen = [arena.marks(kv) for kv in kvs] if isinstance(arena, FileArena) else []
        self.exe.run(
            rows.ids, rows.pos, rows.span, rows.seq, rows.parent, rows.want, list(kvs), freqs, which, logits,
            views, self._kept(kvs), self.seen,
        )  # fmt: skip
        return StepOut(logits, out)

    def _kept(self, kvs: Sequence[SeqKV]) -> list[Ints]:
        """Where each sequence keeps a choice up to the next barrier."""
        n = self.exe.kept_ints
        if not n:
            return []
        for kv in kvs:
            if not kv.n_open:  # its next row may keep one
                kv.kept = {KEPT: np.zeros(n, np.int32)}
        return [kv.kept.get(KEPT, NO_INTS) for kv in kvs]

    def _room(self, n: int) -> NDArray[np.float32]:
        """Logits of n rows: the same memory in every step, which fresh pages would slow down, unless so many
        rows are wanted that it should not be kept."""
        if n > KEPT_ROWS:
            return np.empty((n, self.bound.n_vocab), np.float32)
        if len(self._logits) < n:
            self._logits = np.empty((n, self.bound.n_vocab), np.float32)
        return self._logits[:n]

    def _tap_arrays(self, n: int) -> tuple[dict[str, NDArray[Any]], list[NDArray[np.float32]]]:
        """Arrays to return by name, and where each tap writes."""
        b = self.bound
        out: dict[str, NDArray[Any]] = {}
        views: list[NDArray[np.float32]] = []
        for name, width in self._taps:
            if name.startswith("q."):
                if "q" not in out:
                    out["q"] = np.zeros((b.n_layers, n, b.n_heads, b.head_dim), np.float32)
                views.append(out["q"][int(name[2:])].reshape(n, width))
            else:
                out[name] = np.zeros((n, width), np.float32)
                views.append(out[name])
        return out, views

    def look(self, kv: SeqKV, layer: int, q: NDArray[Any], pos: Ints, what: Look) -> NDArray[Any]:
        """See `kv.look.Looks`. Products are float32, whatever keys are made of."""
        scale, window, softcap = self.store.attention[layer]
        out = room(kv, q, what, np.float32)
        self.exe.look(
            kv, layer, np.ascontiguousarray(q, np.float32), np.ascontiguousarray(pos, np.int32), scale,
            softcap, window, int(what), out.reshape((math.prod(out.shape[:-1]), out.shape[-1])),
        )  # fmt: skip
        return out

    def top(self, logits: NDArray[Any], n: int) -> Ints:
        """See `run.base.Runner`."""
        out = np.empty((len(logits), n), np.int32)
        _native.top(np.ascontiguousarray(logits, np.float32), out)
        return out

    def commit(self, row: Ints, addr: NDArray[np.uint64], block: Ints, slot: Ints) -> None:
        """See `run.base.Runner`. Raises `ValueError` for a row that the last step did not have."""
        self.exe.commit(row, addr, slot)


def usable_cores(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Physical cores that this process may use, no more than the processor time that its control groups
    (version 2) grant: threads beyond it would all be stopped together once it is spent."""
    cores = physical_cores()
    try:
        inside = next(x[3:] for x in own.read_text().splitlines() if x.startswith("0::")).strip("/")
    except (OSError, StopIteration):
        return cores
    for folder in (groups / inside, *(groups / inside).parents):
        if not folder.is_relative_to(groups):
            break
        try:
            share, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if share.isdigit() and period.isdigit() and int(period):
            cores = min(cores, max(1, round(int(share) / int(period))))
    return cores


def physical_cores() -> int:
    """Physical cores among the processors that this process may run on."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    return max(1, len({_siblings(cpu) for cpu in allowed}))


def _siblings(cpu: int) -> str:
    """The processors that share a core with `cpu`, as the system spells them."""
    try:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        return path.read_text().strip()
    except OSError:
        return str(cpu)


def _activation(fn: str) -> int:
    if fn not in ACTIVATIONS:
        raise UnsupportedError(f"no native kernel for the activation {fn!r}; {WAY_OUT}")
    return ACTIVATIONS[fn]


def _numbers(c: Codes, dim: int) -> list[int]:
    group = min(c.group, -(-dim // 32) * 32)
    levels = 1 if c.levels else 2 if c.bits == 8 else 0
    beside = [c.rank, n_spikes(c, dim), n_kept(c, dim), c.salient]
    return [c.bits, group, int(c.offset), int(c.channels), int(c.turn), levels, *beside]


def _zone(layout: Layout, dim: int, codes: tuple[Codes, ...]) -> tuple[int, int, list[int]]:
    """Kind of the stored values, bytes of a member, offsets of k, v, and their factors (0 where absent)."""
    at = {f.name: (o, f) for o, f in zip(layout.offsets, layout.fields, strict=True)}
    if codes:
        keys, values = codes
        if layout.fields[: layout.n_own] != coded_fields(keys, values, dim):
            raise UnsupportedError(f"codes of KV do not lie as their description says; {WAY_OUT}")
        return CODED, layout.member, [at[n][0] if n in at else 0 for n in ("k", "v", "kf", "vf")]
    kinds = {at[name][1].dtype if name in at else "nothing" for name in ("k", "v")}
    kind = kinds.pop() if len(kinds) == 1 else "mixed"
    known = kind in ("float32", "bfloat16") or (kind == "int8" and {"ks", "vs"} <= set(at))
    if not known or at["k"][1].shape != (dim, 16) or at["v"][1].shape != (16, dim):
        raise UnsupportedError(f"no native kernel for KV stored as {kind!r}; {WAY_OUT}")
    return KINDS[kind], layout.member, [at[n][0] if n in at else 0 for n in ("k", "v", "ks", "vs")]
