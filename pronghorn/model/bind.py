"""From a tape and a checkpoint to what a runner executes.

`bind` resolves everything once, at load: layers that a gate removes leave the tape (their weights are
never read, they store no KV), taps are inserted where a trait asks for them, and each matrix is packed by
the first weight format that claims it.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError
from pronghorn.model.rope import Rope
from pronghorn.model.tape import Op, Param, Tape
from pronghorn.slots import AsStored, WeightFormat
from pronghorn.types import Packed

MATRICES = {"embed": 1, "linear": 1, "head": 1}  # kind -> how many leading params are matrices


@dataclass(frozen=True)
class Bound:
    """A model ready for a runner.

    ops: the tape's ops, layers renumbered without gaps; widths: of each register; mats: matrices by
    `Param.key` with the format that packed them; vecs: vectors (norm weights, biases) and position
    tables by key, float32; ropes: the tape's rotary tables; kv_ropes: the table of each layer's keys.
    """

    ops: tuple[Op, ...]
    widths: tuple[int, ...]
    mats: dict[str, tuple[Packed, WeightFormat]]
    vecs: dict[str, NDArray[np.float32]]
    ropes: tuple[Rope, ...]
    kv_ropes: tuple[Rope | None, ...]
    attention: tuple[tuple[float, int], ...]  # (scale, window) of each layer, window 0: none
    layers: tuple[int, ...]  # layer of the model for each layer that runs
    n_heads: int
    n_kv: int
    head_dim: int
    n_vocab: int
    context: int
    hard_context: bool
    dtype: str  # "bfloat16" when the matrices are, else "float32"

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def weight_bytes(self) -> int:
        return sum(p.nbytes for p, _ in self.mats.values()) + sum(v.nbytes for v in self.vecs.values())


def bind(
    tape: Tape, tensors: Mapping[str, NDArray[Any]], formats: Sequence[WeightFormat] = (),
    skips: Sequence[int] = (), taps: Sequence[str] = (),
) -> Bound:  # fmt: skip
    """Raises `CheckpointError` for a weight that is NaN or infinite."""
    layers = tuple(i for i in range(tape.n_layers) if i not in set(skips))
    number = {old: new for new, old in enumerate(layers)}
    alias: dict[int, int] = {}
    hidden = _hidden(taps, tape.n_layers)
    tap_q = any(t.startswith("q.") for t in taps)
    ops: list[Op] = []
    kv_ropes: list[Rope | None] = [None] * len(layers)
    attention = [(0.0, 0)] * len(layers)
    for op in tape.ops:
        if op.layer >= 0 and op.layer not in number:
            source, out = tape.io[op.layer]
            alias[out] = alias.get(source, source)
            continue
        ins = tuple(alias.get(r, r) for r in op.ins)
        attrs = dict(op.attrs)
        if op.kind == "attend":
            attrs["layer"] = number[op.layer]
            attention[number[op.layer]] = (attrs["scale"], attrs["window"])
            if tap_q:
                ops.append(Op("tap", (ins[0],), -1, (), {"name": f"q.{number[op.layer]}"}, op.layer))
            kv_ropes[number[op.layer]] = _key_rope(tape, ins[1])
        if op.kind == "head":
            ops.append(Op("tap", ins, -1, (), {"name": "final"}, -1))
        ops.append(Op(op.kind, ins, op.out, op.params, attrs, op.layer))
        if op.layer in hidden and op.out == tape.io[op.layer][1]:
            ops.append(Op("tap", (op.out,), -1, (), {"name": f"hidden.{op.layer}"}, op.layer))

    choices = [*formats, AsStored()]
    mats: dict[str, tuple[Packed, WeightFormat]] = {}
    vecs: dict[str, NDArray[np.float32]] = {}
    for op in ops:
        n_mats = len(op.params) if op.kind == "moe" else MATRICES.get(op.kind, 0)
        for i, p in enumerate(op.params):
            if p.key in mats or p.key in vecs:
                continue
            value = p.take(tensors)
            _check_finite(p, value)
            if i < n_mats:
                fmt = next(f for f in choices if f.claims(p.name, p.view_shape))
                mats[p.key] = (fmt.pack(value), fmt)
            else:
                vecs[p.key] = np.asarray(value, np.float32)
    narrow = all(p.kind != "float32" for p, _ in mats.values())
    return Bound(
        tuple(ops), tuple(tape.widths), mats, vecs, tuple(tape.ropes), tuple(kv_ropes),
        tuple(attention), layers,
        tape.n_heads, tape.n_kv, tape.head_dim, tape.n_vocab, tape.context, tape.hard_context,
        "bfloat16" if narrow else "float32",
    )  # fmt: skip


def release(bound: Bound) -> None:
    """Give mapped checkpoint pages back to the system, once a runner has packed what it reads. They are
    read again from the file if anybody asks."""
    maps: dict[int, mmap.mmap] = {}
    for packed, _ in bound.mats.values():
        for a in packed.fields.values():
            base: Any = a
            while isinstance(base, np.ndarray):
                base = base.base
            base = base.obj if isinstance(base, memoryview) else base
            if isinstance(base, mmap.mmap):
                maps[id(base)] = base
    for m in maps.values():
        if hasattr(mmap, "MADV_DONTNEED"):
            m.madvise(mmap.MADV_DONTNEED)


def _hidden(taps: Sequence[str], n_layers: int) -> set[int]:
    """Layers whose output is tapped: "hidden.3", "hidden.-1"."""
    return {int(t.split(".")[1]) % n_layers for t in taps if t.startswith("hidden.")}


def _key_rope(tape: Tape, register: int) -> Rope | None:
    """The rotary table that wrote a key register, None where keys carry no rotation."""
    for op in tape.ops:
        if op.out == register:
            return tape.ropes[op.attrs["rope"]] if op.kind == "rope" else None
    return None


def _check_finite(p: Param, value: NDArray[Any]) -> None:
    """NaN and infinity have all exponent bits set; looking at the bits is faster than converting."""
    bits = {
        "bfloat16": (np.uint16, 0x7F80),
        "float16": (np.uint16, 0x7C00),
        "float32": (np.uint32, 0x7F800000),
    }
    kind, mask = bits.get(value.dtype.name, (None, 0))
    flat = value if kind is None else value.view(kind)
    step = max(1, (1 << 22) // max(1, int(np.prod(value.shape[1:]))))
    for i in range(0, len(flat), step):
        part = flat[i : i + step]
        bad = ~np.isfinite(part) if kind is None else (part & mask) == mask
        if bad.any():
            n = int(bad.sum())
            raise CheckpointError(
                f"tensor {p.name!r} holds NaN or infinite values ({n} near row {i}): the checkpoint is "
                "damaged; download or convert it again"
            )
