"""Tapes with sublayers left out, or with attention sublayers of neighbouring layers side by side.

A layer adds what its sublayers make to the residual stream, one addition each. Leaving a sublayer out
means that the stream passes its addition; whatever nobody reads then goes too. Layers keep their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from pronghorn.errors import MethodError
from pronghorn.model.tape import Op, Tape


class Sublayer(NamedTuple):
    """layer; part: "a" where keys and values are made, else "m"; add: index of its addition among the tape's
    ops; stream: the register that it adds to."""

    layer: int
    part: str
    add: int
    stream: int


def sublayers(tape: Tape) -> list[Sublayer]:
    """In the order in which they run."""
    out: list[Sublayer] = []
    layer, stream, attends = -1, -1, False
    for i, op in enumerate(tape.ops):
        if op.layer != layer:
            layer, attends = op.layer, False
            stream = tape.io[layer][0] if layer >= 0 else -1
        attends |= op.kind == "attend"
        if layer >= 0 and op.kind == "add" and stream in op.ins:
            out.append(Sublayer(layer, "a" if attends else "m", i, stream))
            stream, attends = op.out, False
    return out


def without(tape: Tape, skip: Sequence[str]) -> Tape:
    """The tape without the sublayers that `skip` names: "3a" is the attention of layer 3, "3m" its
    feed-forward, "3" both. Raises `MethodError` where there is no such layer, or no attention is left."""
    every = sublayers(tape)
    gone = set()
    for name in skip:
        if not re.fullmatch(r"\d+[am]?", name):
            raise MethodError(f"a layer to skip is 3, 3a (attention) or 3m (feed-forward), not {name!r}")
        layer = int(name.rstrip("am"))
        if layer >= tape.n_layers:
            raise MethodError(f"layers are from 0 to {tape.n_layers - 1} in this model, not {layer}")
        parts = name[len(str(layer)) :] or "am"
        gone |= {s for s in every if s.layer == layer and s.part in parts}
    if not any(s.part == "a" and s not in gone for s in every):
        raise MethodError(f"{', '.join(skip)} leave no attention of the model: one must stay")
    alias: dict[int, int] = {}
    adds = {s.add: s for s in gone}
    ops: list[Op] = []
    for i, op in enumerate(tape.ops):
        if i in adds:
            alias[op.out] = alias.get(adds[i].stream, adds[i].stream)
        else:
            ops.append(op._replace(ins=tuple(alias.get(r, r) for r in op.ins)))
    io = {layer: (alias.get(a, a), alias.get(b, b)) for layer, (a, b) in tape.io.items()}
    return replace(tape, ops=_read(ops), io=io)


def parallel(tape: Tape, block: int) -> Tape:
    """Attention sublayers of `block` layers in a row take the stream as it enters the first of them; their
    results are added where they were."""
    ops = list(tape.ops)
    attention = [s for s in sublayers(tape) if s.part == "a"]
    for at in range(0, len(attention), block):
        entry = attention[at].stream
        for s in attention[at + 1 : at + block]:
            for i, op in enumerate(ops[: s.add]):
                if op.layer == s.layer:
                    ops[i] = op._replace(ins=tuple(entry if r == s.stream else r for r in op.ins))
    return replace(tape, ops=ops)


def _read(ops: Sequence[Op]) -> list[Op]:
    """The ops whose results anybody reads, from the head on."""
    wanted: set[int] = set()
    kept = []
    for op in reversed(ops):
        if op.kind == "head" or op.out in wanted:
            wanted.update(op.ins)
            kept.append(op)
    return kept[::-1]
