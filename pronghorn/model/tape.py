"""The tape: a model as a flat list of ops over row registers.

A register holds one vector per row of the step. An architecture file builds the tape once per
checkpoint; `bind` inserts taps, removes gated layers and packs the weights; a runner executes it.
What each op means is written once, in `ops/ref.py`.

    kind     ins          params         attrs                                        out
    embed    -            w              scale                                        width
    wpe      x            w              -                                            x + w[pos]
    norm     x            w[, b]         mode ("rms"|"layer"), eps, group              same width
    linear   x            w[, b]         -                                            n_out
    rope     x            -              rope, n_heads                                same width
    attend   q, k, v      -              layer, n_heads, n_kv, head_dim, scale,
                                         softcap, window                              n_heads*head_dim
    act      x            -              fn                                           same width
    glu      gate, up     -              fn                                           fn(gate) * up
    add      a, b         -              -                                            a + b
    scale    x            -              by                                           by * x
    moe      x            router,        top_k, renorm, fn, n_experts, width          same width
                          gate.e, up.e, down.e for each expert, in this order
    tap      x            -              name                                         -
    head     x            w[, b]         scale, softcap                               logits of wanted rows

`norm` with `group` g normalises every run of g values on its own with one weight of size g (per-head
norms); g equal to the width is the usual norm. `fn` is "silu", "gelu" (erf), "gelu_tanh" or "relu".
`moe`: softmax over all experts in float32, the top_k largest (ties: lowest index), divided by their
sum when `renorm`; experts are gated feed-forwards. `window` w > 0 hides keys at pos <= q_pos - w.
`softcap` c > 0 replaces a score or logit s by c * tanh(s / c). The KV rows of `attend` are stored
rotated. Every attend op writes layer `layer` of the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pronghorn.model.rope import Rope
from pronghorn.ops.codes import Codes
from pronghorn.ops.panels import unpack
from pronghorn.types import Packed


@dataclass(frozen=True)
class Param:
    """A parameter as the tape uses it, cut out of a checkpoint's tensor.

    name: tensor in the checkpoint; shape: that tensor's full shape (checked at load);
    rows: (start, stop) slice of its first axis after `transpose`; expert: index on a leading axis of a
    stacked tensor, -1 for none; transpose: the tensor is stored (n_in, n_out); add: constant added.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] = (0, 0)
    expert: int = -1
    transpose: bool = False
    add: float = 0.0

    @property
    def key(self) -> str:
        """Unique name of this view: two ops with the same key share one packed weight."""
        cut = f"[{self.rows[0]}:{self.rows[1]}]" if self.rows != (0, 0) else ""
        which = f"#{self.expert}" if self.expert >= 0 else ""
        return self.name + which + cut

    @property
    def view_shape(self) -> tuple[int, ...]:
        shape = self.shape[1:] if self.expert >= 0 else self.shape
        if self.transpose:
            shape = shape[::-1]
        return (self.rows[1] - self.rows[0], *shape[1:]) if self.rows != (0, 0) else shape

    def take(self, tensors: Mapping[str, Any]) -> Any:
        """The view itself: an array (no copy unless `add` is set), or `Codes`, or `Packed` where a
        checkpoint has the whole of it so."""
        a = tensors[self.name]
        if isinstance(a, Packed):
            if self.key == self.name and not self.transpose and not self.add:
                return a
            a = unpack(a)
        if isinstance(a, Codes) and (self.transpose or self.add):
            a = a.dense()
        if self.expert >= 0:
            a = a[self.expert]
        if self.transpose:
            a = a.T
        if self.rows != (0, 0):
            a = a[self.rows[0] : self.rows[1]]
        return a if not self.add else np.asarray(a, np.float32) + np.float32(self.add)


class Op(NamedTuple):
    kind: str
    ins: tuple[int, ...]
    out: int  # register, -1 when none
    params: tuple[Param, ...]
    attrs: dict[str, Any]
    layer: int  # -1 outside the layers


@dataclass
class Tape:
    """Built by an architecture file; see the module's table for the ops."""

    n_layers: int
    n_heads: int
    n_kv: int
    head_dim: int
    n_vocab: int
    context: int  # positions the model was made for; learned positions end here
    hard_context: bool = False  # True: positions past `context` do not exist (learned embeddings)
    ops: list[Op] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    ropes: list[Rope] = field(default_factory=list)
    layer: int = -1
    io: dict[int, tuple[int, int]] = field(default_factory=dict)  # layer -> (in, out) registers

    def begin(self, layer: int, x: int) -> None:
        """Ops from here belong to `layer`, whose input is the residual stream `x`."""
        self.layer = layer
        self.io[layer] = (x, x)

    def end(self, x: int) -> int:
        """The current layer's output is `x`. A layer that is skipped passes its input through."""
        self.io[self.layer] = (self.io[self.layer][0], x)
        self.layer = -1
        return x

    def _push(
        self,
        kind: str,
        ins: tuple[int, ...],
        n_out: int,
        params: tuple[Param, ...] = (),
        **attrs: Any,
    ) -> int:
        out = -1
        if n_out:
            self.widths.append(n_out)
            out = len(self.widths) - 1
        self.ops.append(Op(kind, ins, out, params, attrs, self.layer))
        return out

    def rope_table(self, rope: Rope) -> int:
        """Index of `rope` among the tape's rotary tables."""
        if rope not in self.ropes:
            self.ropes.append(rope)
        return self.ropes.index(rope)

    def embed(self, w: Param, scale: float = 1.0) -> int:
        return self._push("embed", (), w.view_shape[1], (w,), scale=scale)

    def wpe(self, x: int, w: Param) -> int:
        return self._push("wpe", (x,), self.widths[x], (w,))

    def norm(self, x: int, w: Param, eps: float, *bias: Param, mode: str = "rms", group: int = 0) -> int:
        width = self.widths[x]
        return self._push("norm", (x,), width, (w, *bias), mode=mode, eps=eps, group=group or width)

    def linear(self, x: int, w: Param, *bias: Param) -> int:
        return self._push("linear", (x,), w.view_shape[0], (w, *bias))

    def rope(self, x: int, table: int, n_heads: int) -> int:
        return self._push("rope", (x,), self.widths[x], rope=table, n_heads=n_heads)

    def attend(self, q: int, k: int, v: int, scale: float, softcap: float = 0.0, window: int = 0) -> int:
        return self._push(
            "attend", (q, k, v), self.n_heads * self.head_dim, layer=self.layer,
            n_heads=self.n_heads, n_kv=self.n_kv, head_dim=self.head_dim, scale=scale,
            softcap=softcap, window=window,
        )  # fmt: skip

    def act(self, x: int, fn: str) -> int:
        return self._push("act", (x,), self.widths[x], fn=fn)

    def glu(self, gate: int, up: int, fn: str) -> int:
        return self._push("glu", (gate, up), self.widths[gate], fn=fn)

    def add(self, a: int, b: int) -> int:
        return self._push("add", (a, b), self.widths[a])

    def scale(self, x: int, by: float) -> int:
        return self._push("scale", (x,), self.widths[x], by=by)

    def moe(
        self, x: int, router: Param, experts: list[tuple[Param, Param, Param]], top_k: int,
        renorm: bool, fn: str,
    ) -> int:  # fmt: skip
        flat = tuple(p for triple in experts for p in triple)
        return self._push(
            "moe", (x,), self.widths[x], (router, *flat), top_k=top_k, renorm=renorm, fn=fn,
            n_experts=len(experts), width=experts[0][0].view_shape[0],
        )  # fmt: skip

    def head(self, x: int, w: Param, *bias: Param, scale: float = 1.0, softcap: float = 0.0) -> int:
        return self._push("head", (x,), self.n_vocab, (w, *bias), scale=scale, softcap=softcap)

    def params(self) -> dict[str, Param]:
        """Every parameter view by key."""
        return {p.key: p for op in self.ops for p in op.params}

    def expected(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape that the checkpoint must have."""
        return {p.name: p.shape for op in self.ops for p in op.params}
