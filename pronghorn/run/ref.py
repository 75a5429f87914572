"""The reference runner: executes a bound tape op by op over the array namespace.

NumPy in float64 is the oracle; NumPy in float32 and PyTorch (CPU, CUDA) run the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.layout import PAGE
from pronghorn.kv.store import SeqKV, Store
from pronghorn.model.bind import Bound
from pronghorn.model.tape import Op
from pronghorn.nulls import AsCoded, AsStored
from pronghorn.ops import ref
from pronghorn.ops.ref import Ops
from pronghorn.ops.values import dense
from pronghorn.run.base import check, sources, visible
from pronghorn.slots import WeightFormat
from pronghorn.types import Array, Ints, Packed, Rows, StepOut


class RefRunner:
    """See `run.base.Runner`. Weights are widened to the compute dtype at load; those that a runner `beside`
    this one holds too are its."""

    read_bytes = 0
    seen = ()

    def __init__(self, bound: Bound, store: Store, beside: Sequence[RefRunner] = ()) -> None:
        self.bound, self.store = bound, store
        self.ops: Ops = store.ops
        self.mats: dict[str, tuple[Packed, WeightFormat]] = {}
        for key in bound.mats:
            same = next((r for r in beside if bound.mats.same(key, r.bound.mats)), None)
            if same is not None:
                self.mats[key] = same.mats[key]
                continue
            p, fmt = bound.mats[key]
            if p.grid is not None or isinstance(fmt, AsCoded):  # decoded once, not in each product
                p, fmt = AsStored().pack(dense(p)), AsStored()
            fields = {name: self._widen(a) for name, a in p.fields.items()}
            self.mats[key] = (replace(p, fields=fields), fmt)
        self.vecs = {key: self._widen(v) for key, v in bound.vecs.items()}
        self.sources = sources(store.selector, bound)
        self.tail: dict[int, tuple[Array, Array]] = {}  # layer -> k, v (n, n_kv, dim)
        self.steps: dict[str, Callable[[Op, list[Array], _Step], Array]] = {
            "embed": self._embed, "wpe": self._wpe, "norm": self._norm, "linear": self._linear,
            "rope": self._rope, "attend": self._attend, "act": self._act, "glu": self._glu,
            "add": self._add, "scale": self._scale, "moe": self._moe, "tap": self._tap,
            "head": self._head,
        }  # fmt: skip

    def _widen(self, a: Any) -> Array:
        a = self.ops.array(a)
        whole = a.dtype in (self.ops.dtype_of("int8"), self.ops.dtype_of("uint8"))
        return a if whole else self.ops.cast(a)

    def run(self, rows: Rows, kvs: Sequence[SeqKV], taps: bool) -> StepOut:
        check(rows, len(kvs), self.bound.n_vocab)
        step = _Step(self, rows, kvs, taps)
        self.tail = {}
        regs: dict[int, Array] = {}
        for op in self.bound.ops:
            out = self.steps[op.kind](op, [regs[r] for r in op.ins], step)
            if op.out >= 0:
                regs[op.out] = out
        return StepOut(self.ops.numpy(step.logits), step.collected())

    def commit(self, row: Ints, addr: NDArray[np.uint64], block: Ints, slot: Ints) -> None:
        lay, arena, ops = self.store.open_layout, self.store.open_arena, self.ops
        kf, vf = lay.fields
        dim = self.bound.head_dim
        pick = ops.array(row.astype(np.int64))
        for one in np.unique(block):
            here = np.flatnonzero(block == one)
            ids = np.array([one], np.int32)
            at = ops.array(slot[here].astype(np.int64))
            for layer, (k, v) in self.tail.items():
                for h in range(self.bound.n_kv):
                    i = layer * self.bound.n_kv + h
                    rows = pick[ops.array(here)]
                    page = arena.read(ids, lay.where(0, i, 0), kf.dtype, (dim, PAGE))
                    page[0][:, at] = ops.to(k[rows, h], kf.dtype).T
                    arena.write(ids, lay.where(0, i, 0), kf.dtype, page)
                    page = arena.read(ids, lay.where(0, i, 1), vf.dtype, (PAGE, dim))
                    page[0][at] = ops.to(v[rows, h], vf.dtype)
                    arena.write(ids, lay.where(0, i, 1), vf.dtype, page)

    def top(self, logits: NDArray[Any], n: int) -> Ints:
        order = np.argsort(-logits, axis=-1, kind="stable")[:, :n].astype(np.int32)
        return np.pad(order, ((0, 0), (0, n - order.shape[1])), constant_values=-1)

    # ------------------------------------------------------------------ ops

    def _matmul(self, key: str, x: Array) -> Array:
        w, fmt = self.mats[key]
        return fmt.matmul(x, w, self.ops)

    def _embed(self, op: Op, ins: list[Array], s: _Step) -> Array:
        w, fmt = self.mats[op.params[0].key]
        return fmt.take(w, s.ids, self.ops) * op.attrs["scale"]

    def _wpe(self, op: Op, ins: list[Array], s: _Step) -> Array:
        return ins[0] + self.vecs[op.params[0].key][s.pos]

    def _norm(self, op: Op, ins: list[Array], s: _Step) -> Array:
        w, b = self.vecs[op.params[0].key], None
        if len(op.params) > 1:
            b = self.vecs[op.params[1].key]
        a = op.attrs
        return ref.norm(self.ops, ins[0], w, b, a["mode"], a["eps"], a["group"])

    def _linear(self, op: Op, ins: list[Array], s: _Step) -> Array:
        y = self._matmul(op.params[0].key, ins[0])
        return y + self.vecs[op.params[1].key] if len(op.params) > 1 else y

    def _rope(self, op: Op, ins: list[Array], s: _Step) -> Array:
        cos, sin = s.angles(op.attrs["rope"])
        x = ins[0].reshape((s.n, op.attrs["n_heads"], -1))
        return ref.rotate(self.ops, x, cos, sin).reshape((s.n, -1))

    def _act(self, op: Op, ins: list[Array], s: _Step) -> Array:
        return ref.activation(self.ops, ins[0], op.attrs["fn"])

    def _glu(self, op: Op, ins: list[Array], s: _Step) -> Array:
        return ref.activation(self.ops, ins[0], op.attrs["fn"]) * ins[1]

    def _add(self, op: Op, ins: list[Array], s: _Step) -> Array:
        return ins[0] + ins[1]

    def _scale(self, op: Op, ins: list[Array], s: _Step) -> Array:
        return ins[0] * op.attrs["by"]

    def _moe(self, op: Op, ins: list[Array], s: _Step) -> Array:
        x, a = ins[0], op.attrs
        ids, weight = ref.route(self.ops, self._matmul(op.params[0].key, x), a["top_k"], a["renorm"])
        out = self.ops.xp.zeros_like(x)
        host = self.ops.numpy(ids)
        for e in np.unique(host):
            row, rank = np.nonzero(host == e)
            at, rk = self.ops.array(row), self.ops.array(rank)
            gate, up, down = (p.key for p in op.params[1 + 3 * e : 4 + 3 * e])
            h = ref.activation(self.ops, self._matmul(gate, x[at]), a["fn"]) * self._matmul(up, x[at])
            out[at] = out[at] + weight[at, rk][:, None] * self._matmul(down, h)
        return out

    def _tap(self, op: Op, ins: list[Array], s: _Step) -> Array:
        if s.taps:
            s.tapped[op.attrs["name"]] = self.ops.numpy(ins[0])
        return ins[0]

    def _head(self, op: Op, ins: list[Array], s: _Step) -> Array:
        y = self._matmul(op.params[0].key, ins[0][s.want])
        if len(op.params) > 1:
            y = y + self.vecs[op.params[1].key]
        y = y * op.attrs["scale"]
        if op.attrs["softcap"]:
            y = op.attrs["softcap"] * self.ops.xp.tanh(y / op.attrs["softcap"])
        s.logits = y
        return y

    def _attend(self, op: Op, ins: list[Array], s: _Step) -> Array:
        a, ops, store = op.attrs, self.ops, self.store
        layer, n_kv, dim = a["layer"], a["n_kv"], a["head_dim"]
        q = ins[0].reshape((s.n, n_kv, -1, dim))  # (n, n_kv, g, dim)
        k, v = ins[1].reshape((s.n, n_kv, dim)), ins[2].reshape((s.n, n_kv, dim))
        k, v = (ops.cast(ops.to(t, store.open_dtype)) for t in (k, v))  # as they will be stored
        self.tail[layer] = (k, v)
        out = ops.xp.zeros_like(q)
        for i, kv in enumerate(s.kvs):
            at = np.flatnonzero(s.rows.seq == i)
            if not len(at):
                continue
            mine = ops.array(at)
            pos = s.rows.pos[at]
            for h in range(n_kv):
                qh = q[mine, h]  # (m, g, dim)
                parts: list[tuple[Array, Array]] = []

                def add(
                    kk: Array, vv: Array, see: NDArray[np.bool_], where: NDArray[Any], qh: Array = qh,
                    pos: Ints = pos, parts: list[Any] = parts, bias: Array = (),
                ) -> None:  # fmt: skip
                    if a["window"]:
                        see = see & (where[None] > pos[:, None] - a["window"])
                    seen = ops.array(see)
                    parts.append(ref.attend(ops, qh, kk, vv, seen, a["scale"], a["softcap"], bias))

                g, member = store.group_of[layer, h]
                sealed = kv.sealed[g]
                if len(sealed.blocks):
                    pk, pv = store.sealed_rows(kv, layer, h)
                    see = np.repeat(np.arange(PAGE)[None] < sealed.fill[:, None], 1, axis=0)
                    see = np.broadcast_to(see.reshape(-1), (len(at), see.size))
                    if layer in self.sources:
                        index = {
                            name: ops.cast(f)
                            for name, f in store.read_fields(sealed.blocks, g, member, own=False).items()
                        }
                        if store.selector.choice.score == "keys":
                            valid = ops.array(np.arange(PAGE)[None] < sealed.fill[:, None])
                            index |= {"k": pk, "valid": valid}
                        selector = store.selector.of(store.tables, layer, h)
                        pages = selector.select(qh * a["scale"], index, ops).pages
                        s.chosen[i, h] = self._kept(layer, h, kv, ops.numpy(pages), q[mine], s, at)
                    if self.sources[layer] >= 0:
                        see = see & np.repeat(s.chosen[i, h], PAGE, axis=1)
                    bias = ops.cast(ops.array(sealed.bias[member])) if len(sealed.bias) else ()
                    add(pk.reshape((-1, dim)), pv.reshape((-1, dim)), see, sealed.pos, bias=bias)
                if kv.n_open:
                    ok, ov = store.read_open(kv, layer, h, -(-kv.n_open // PAGE))
                    see = np.ones((len(at), kv.n_open), bool)
                    add(ok[: kv.n_open], ov[: kv.n_open], see, kv.open_pos[: kv.n_open])
                add(k[mine, h], v[mine, h], s.seen[np.ix_(at, at)], pos)
                out[mine, h] = ref.merge(ops, parts)
        return out.reshape((s.n, -1))

    def _kept(
        self, layer: int, h: int, kv: SeqKV, own: NDArray[np.bool_], q: Array, s: _Step, at: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Pages (m, n_pages) that rows `at` of a sequence read where choices are kept (`types.Choice`); own:
        what each chooses; q (m, n_kv, g, dim)."""
        c = self.store.selector.choice
        if not c.keep:
            return own
        flat = self.ops.numpy(q).reshape(len(at), -1)
        answers = s.rows.pos[at] + 1 >= s.rows.span[at]
        if not kv.n_open and answers[0] and s.rows.parent[at[0]] < 0:  # the first row behind a barrier
            if h in kv.kept.get(str(layer), (0, (h,)))[1]:  # of an earlier step, which nobody committed
                kv.kept[str(layer)] = (flat[0], {})
            kv.kept[str(layer)][1][h] = own[0]
            answers[0] = False
        others = np.ones_like(own) if c.keep == "all" else own
        if str(layer) not in kv.kept:
            return others
        first, pages = kv.kept[str(layer)]
        size = np.sqrt((flat**2).sum(axis=1) * (first**2).sum())
        near = np.round(1024 * (flat @ first) / np.where(size > 0, size, 1)) >= 1024 * c.like
        return np.where((answers & near)[:, None], pages[h], others)


class _Step:
    """What the ops of one step share."""

    def __init__(self, runner: RefRunner, rows: Rows, kvs: Sequence[SeqKV], taps: bool) -> None:
        ops = runner.ops
        self.runner, self.rows, self.kvs, self.taps, self.n = runner, rows, kvs, taps, rows.n
        self.ids = ops.array(rows.ids.astype(np.int64))
        self.pos = ops.array(rows.pos.astype(np.int64))
        self.want = ops.array(np.flatnonzero(rows.want))
        self.seen = visible(rows)
        self.logits: Array = None
        self.chosen: dict[
            tuple[int, int], NDArray[np.bool_]
        ] = {}  # pages by (sequence, KV head), last choice
        self.tapped: dict[str, NDArray[Any]] = {}
        self._angles: dict[int, tuple[Array, Array]] = {}

    def angles(self, table: int) -> tuple[Array, Array]:
        """cos, sin (n, half) of a rotary table for this step's rows."""
        if table not in self._angles:
            rope, ops, rows = self.runner.bound.ropes[table], self.runner.ops, self.rows
            freq = np.stack([rope.inv_freq(int(x)) for x in rows.span])
            # float32 angles, as the models were trained and as the reference implementations have them
            angle = (rows.pos[:, None].astype(np.float32) * freq).astype(np.float64)
            pair = (np.cos(angle) * rope.gain, np.sin(angle) * rope.gain)
            self._angles[table] = (ops.cast(ops.array(pair[0])), ops.cast(ops.array(pair[1])))
        return self._angles[table]

    def collected(self) -> dict[str, NDArray[Any]]:
        b = self.runner.bound
        q = [self.tapped[f"q.{i}"] for i in range(b.n_layers) if f"q.{i}" in self.tapped]
        out = {name: a for name, a in self.tapped.items() if not name.startswith("q.")}
        if q:
            out["q"] = np.stack(q).reshape(b.n_layers, self.n, b.n_heads, b.head_dim)
        return out
