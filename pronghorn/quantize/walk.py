"""Calibration text on its way through a tape, op by op, all rows at once.

Before a product is computed its input is shown to whoever quantizes (`prepare`), and the product then uses
what that one has put in place of the weights: every matrix is calibrated on what the matrices before it, as
quantized, really pass on. What each op means is `ops.ref`, in float32; sequences are independent and there is
no cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.model.quantized.stored import floats
from pronghorn.model.tape import Op, Param, Tape
from pronghorn.ops import ref
from pronghorn.ops.codes import Codes
from pronghorn.ops.ref import Ops
from pronghorn.types import Packed

Floats = NDArray[np.float32]
Prepare = Callable[[Sequence[Param], Floats, int], None]  # params, their inputs, register or -1


def nothing(params: Sequence[Param], x: Floats, register: int) -> None:
    """Prepares nothing: the walk of the model as it is."""


class Walk:
    """ids: (n_seqs, length) of equal-length sequences. tensors: name -> array; what `prepare` puts into it
    is used from then on."""

    def __init__(self, tape: Tape, tensors: Mapping[str, Any], ids: NDArray[np.int32]) -> None:
        self.tape, self.tensors, self.ids = tape, tensors, ids
        self.ops = Ops("float32")
        self.n_seqs, self.length = ids.shape
        self.regs: dict[int, Floats] = {}
        self._angles: dict[int, tuple[Floats, Floats]] = {}
        self._last: dict[int, int] = {}
        for i, op in enumerate(tape.ops):
            for r in op.ins:
                self._last[r] = i

    def run(self, ops: Sequence[tuple[int, Op]], prepare: Prepare = nothing) -> None:
        """Execute (index in the tape, op) in turn; registers nobody reads later are dropped."""
        for i, op in ops:
            out = self.do(op, [self.regs[r] for r in op.ins], prepare)
            for r in set(op.ins):
                if self._last[r] == i:
                    del self.regs[r]
            if op.out >= 0 and self._last.get(op.out, -1) > i:
                self.regs[op.out] = out

    def value(self, p: Param) -> Floats:
        """A parameter as the walk reads it, float32."""
        return floats(p.take(self.tensors))

    def do(self, op: Op, ins: list[Floats], prepare: Prepare) -> Floats:
        a, ops = op.attrs, self.ops
        if op.kind == "embed":
            prepare(op.params, np.zeros((0, 0), np.float32), -1)
            w = op.params[0].take(self.tensors)
            if isinstance(w, Codes | Packed):
                w = floats(w)
            rows: Floats = np.asarray(w[self.ids.reshape(-1)], np.float32) * np.float32(a["scale"])
            return rows
        if op.kind == "wpe":
            at = np.tile(np.arange(self.length), self.n_seqs)
            placed: Floats = ins[0] + self.value(op.params[0])[at]
            return placed
        if op.kind == "norm":
            w, *b = (self.value(p) for p in op.params)
            out: Floats = ref.norm(ops, ins[0], w, b[0] if b else None, a["mode"], a["eps"], a["group"])
            return out
        if op.kind in ("linear", "head"):
            prepare(op.params[:1], ins[0], op.ins[0])
            if op.kind == "head":  # nobody reads the logits here
                return ins[0]
            y: Floats = ins[0] @ self.value(op.params[0]).T
            return y + self.value(op.params[1]) if len(op.params) > 1 else y
        if op.kind == "rope":
            cos, sin = self._rotation(a["rope"])
            x = ins[0].reshape(len(ins[0]), a["n_heads"], -1)
            turned: Floats = ref.rotate(ops, x, cos, sin).reshape(len(x), -1)
            return turned
        if op.kind == "attend":
            return self._attend(op, *ins)
        if op.kind == "act":
            act: Floats = ref.activation(ops, ins[0], a["fn"])
            return act
        if op.kind == "glu":
            glu: Floats = ref.activation(ops, ins[0], a["fn"]) * ins[1]
            return glu
        if op.kind == "add":
            return ins[0] + ins[1]
        if op.kind == "scale":
            by: Floats = ins[0] * np.float32(a["by"])
            return by
        if op.kind == "moe":
            return self._moe(op, ins[0], prepare)
        raise ValueError(f"no op {op.kind!r}")

    def _rotation(self, table: int) -> tuple[Floats, Floats]:
        """cos, sin (n, half) for all rows: positions count from 0 in each sequence."""
        if table not in self._angles:
            rope = self.tape.ropes[table]
            angle = np.arange(self.length, dtype=np.float32)[:, None] * rope.inv_freq(self.length)
            pair = (np.cos(angle) * rope.gain, np.sin(angle) * rope.gain)
            cos, sin = (np.tile(x.astype(np.float32), (self.n_seqs, 1)) for x in pair)
            self._angles[table] = cos, sin
        return self._angles[table]

    def _attend(self, op: Op, q: Floats, k: Floats, v: Floats) -> Floats:
        a, n = op.attrs, self.length
        dim, n_kv = a["head_dim"], a["n_kv"]
        at = np.arange(n)
        seen = at[:, None] >= at[None]
        if a["window"]:
            seen &= at[None] > at[:, None] - a["window"]
        out = np.empty_like(q).reshape(self.n_seqs, n, n_kv, -1, dim)
        heads = [x.reshape(self.n_seqs, n, n_kv, -1) for x in (q, k, v)]
        for s in range(self.n_seqs):
            for h in range(n_kv):
                qh, kh, vh = (x[s, :, h] for x in heads)
                one, _ = ref.attend(
                    self.ops, qh.reshape(n, -1, dim), kh, vh, seen, np.float32(a["scale"]), a["softcap"]
                )
                out[s, :, h] = one
        return out.reshape(q.shape)

    def _moe(self, op: Op, x: Floats, prepare: Prepare) -> Floats:
        a = op.attrs
        logits = x @ self.value(op.params[0]).T
        ids, weight = ref.route(self.ops, logits, a["top_k"], a["renorm"])
        out = np.zeros_like(x)
        for e in range(a["n_experts"]):
            gate, up, down = op.params[1 + 3 * e : 4 + 3 * e]
            row, rank = np.nonzero(ids == e)
            mine = x[row]
            prepare((gate, up), mine, -1)
            h = ref.activation(self.ops, mine @ self.value(gate).T, a["fn"]) * (mine @ self.value(up).T)
            prepare((down,), h, -1)
            out[row] += weight[row, rank][:, None] * (h @ self.value(down).T)
        return out
