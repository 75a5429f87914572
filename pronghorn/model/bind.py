"""From a tape and a checkpoint to what a runner executes.

`bind` resolves everything once, at load: layers that a gate removes leave the tape (their weights are
never read, they store no KV), taps are inserted where a trait asks for them, and each matrix gets the
first weight format that claims it. Matrices are packed when a runner asks for them, so that no more
than one lies in memory twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError
from pronghorn.model.checkpoint import Tensors
from pronghorn.model.quantized.stored import side_by_side
from pronghorn.model.rope import Rope
from pronghorn.model.tape import Op, Param, Tape
from pronghorn.nulls import AsCoded, AsStored
from pronghorn.ops.codes import Grid
from pronghorn.ops.panels import pack
from pronghorn.ops.values import dense
from pronghorn.slots import WeightFormat
from pronghorn.types import Packed

MATRICES = {"embed": 1, "linear": 1, "head": 1}  # kind -> how many leading params are matrices


class Form(NamedTuple):
    """What became of a matrix, without its numbers; see `Packed`."""

    kind: str
    shape: tuple[int, ...]
    grid: Grid | None
    nbytes: int


class Matrices(Mapping[str, tuple[Packed, WeightFormat]]):
    """Matrices by `Param.key` with the format that packs them. Each look-up takes the matrix from the
    checkpoint and packs it anew: whoever needs one twice keeps it.

    Look-ups raise `CheckpointError` for a weight that is NaN or infinite.
    """

    def __init__(self, tensors: Mapping[str, Any], chosen: dict[str, tuple[Param, WeightFormat]]) -> None:
        self._tensors, self._chosen = tensors, chosen
        self._forms: dict[str, Form] = {}

    def __getitem__(self, key: str) -> tuple[Packed, WeightFormat]:
        param, fmt = self._chosen[key]
        packed, fmt = self._pack(param, fmt)
        self._forms[key] = Form(packed.kind, packed.shape, packed.grid, packed.nbytes)
        return packed, fmt

    def form(self, key: str) -> Form:
        """Without packing it again."""
        if key not in self._forms:
            self[key]
        return self._forms[key]

    def same(self, key: str, other: Matrices) -> bool:
        """Whether `other` has the same matrix in the same form."""
        return self._tensors is other._tensors and self._chosen[key] == other._chosen.get(key)

    def _pack(self, param: Param, fmt: WeightFormat) -> tuple[Packed, WeightFormat]:
        value = param.take(self._tensors)
        if isinstance(fmt, AsCoded) and isinstance(value, np.ndarray):
            fmt = AsStored()  # what a checkpoint holds in a form that codes do not have
        if isinstance(fmt, AsCoded):
            return (value if isinstance(value, Packed) else pack(value)), fmt
        value = dense(value)
        check_finite(param.name, value)
        packed = fmt.pack(value)
        shares = any(np.may_share_memory(value, field) for field in packed.fields.values())
        if isinstance(self._tensors, Tensors) and not shares:
            self._tensors.done(value.nbytes)
        return packed, fmt

    def __contains__(self, key: object) -> bool:  # else a look-up would be tried
        return key in self._chosen

    def __iter__(self) -> Iterator[str]:
        return iter(self._chosen)

    def __len__(self) -> int:
        return len(self._chosen)


@dataclass(frozen=True)
class Bound:
    """A model ready for a runner.

    ops: the tape's ops, layers renumbered without gaps; widths: of each register; mats: see `Matrices`;
    vecs: vectors (norm weights, biases) and position tables by key, float32; ropes: the tape's rotary
    tables; kv_ropes: the table of each layer's keys.
    """

    ops: tuple[Op, ...]
    widths: tuple[int, ...]
    mats: Matrices
    vecs: dict[str, NDArray[np.float32]]
    ropes: tuple[Rope, ...]
    kv_ropes: tuple[Rope | None, ...]
    attention: tuple[tuple[float, int, float], ...]  # (scale, window, soft cap) of each layer, 0: none
    layers: tuple[int, ...]  # layer of the model for each layer that runs
    n_heads: int
    n_kv: int
    head_dim: int
    n_vocab: int
    context: int
    hard_context: bool
    dtype: str  # "float32" when a matrix is, or float16, which bfloat16 cannot follow; else "bfloat16"

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def weight_bytes(self) -> int:
        return sum(self.mats.form(key).nbytes for key in self.mats) + sum(
            v.nbytes for v in self.vecs.values()
        )


def bind(
    tape: Tape, tensors: Mapping[str, Any], formats: Sequence[WeightFormat] = (),
    skips: Sequence[int] = (), taps: Sequence[str] = (),
) -> Bound:  # fmt: skip
    """tensors: arrays, or `Codes` or `Packed` where the checkpoint is quantized; those stay as they are
    unless a format claims them. Raises `CheckpointError` for a vector with NaN or infinite values."""
    layers = tuple(i for i in range(tape.n_layers) if i not in set(skips))
    number = {old: new for new, old in enumerate(layers)}
    alias: dict[int, int] = {}
    hidden = _hidden(taps, tape.n_layers)
    tap_q = any(t.startswith("q.") for t in taps)
    ops: list[Op] = []
    kv_ropes: list[Rope | None] = [None] * len(layers)
    attention = [(0.0, 0, 0.0)] * len(layers)
    for op in tape.ops:
        if op.layer >= 0 and op.layer not in number:
            source, out = tape.io[op.layer]
            alias[out] = alias.get(source, source)
            continue
        ins = tuple(alias.get(r, r) for r in op.ins)
        attrs = dict(op.attrs)
        if op.kind == "attend":
            attrs["layer"] = number[op.layer]
            attention[number[op.layer]] = (attrs["scale"], attrs["window"], attrs["softcap"])
            if tap_q:
                ops.append(Op("tap", (ins[0],), -1, (), {"name": f"q.{number[op.layer]}"}, op.layer))
            kv_ropes[number[op.layer]] = _key_rope(tape, ins[1])
        if op.kind == "head":
            ops.append(Op("tap", ins, -1, (), {"name": "final"}, -1))
        ops.append(Op(op.kind, ins, op.out, op.params, attrs, op.layer))
        if op.layer in hidden and op.out == tape.io[op.layer][1]:
            ops.append(Op("tap", (op.out,), -1, (), {"name": f"hidden.{op.layer}"}, op.layer))

    chosen: dict[str, tuple[Param, WeightFormat]] = {}
    vecs: dict[str, NDArray[np.float32]] = {}
    wide = False
    for op in ops:
        n_mats = len(op.params) if op.kind == "moe" else MATRICES.get(op.kind, 0)
        for i, p in enumerate(op.params):
            if p.key in chosen or p.key in vecs:
                continue
            if i < n_mats:
                small = _is_small(tensors, p.name)
                null = AsCoded() if small else AsStored()
                fmt = next((f for f in formats if f.claims(p.name, p.view_shape)), null)
                chosen[p.key] = (p, fmt)
                wide |= not isinstance(fmt, AsCoded) and _is_wide(fmt, p, tensors, small)
            else:
                vecs[p.key] = np.asarray(dense(p.take(tensors)), np.float32)
                check_finite(p.name, vecs[p.key])
    return Bound(
        tuple(ops), tuple(tape.widths), Matrices(tensors, chosen), vecs, tuple(tape.ropes), tuple(kv_ropes),
        tuple(attention), layers,
        tape.n_heads, tape.n_kv, tape.head_dim, tape.n_vocab, tape.context, tape.hard_context,
        "float32" if wide else "bfloat16",
    )  # fmt: skip


def _is_small(tensors: Mapping[str, Any], name: str) -> bool:
    """Whether a tensor is codes or packed; those of a checkpoint are not read for that, which costs."""
    if isinstance(tensors, Tensors):
        return tensors.info(name).small
    return not isinstance(tensors[name], np.ndarray)


def _is_wide(fmt: WeightFormat, p: Param, tensors: Mapping[str, Any], small: bool) -> bool:
    """What one row says of all."""
    few = np.zeros((1, p.view_shape[1]), np.float32) if small else p.take(tensors)[:1]
    return fmt.pack(np.zeros_like(few)).kind in ("float32", "float16")


def _hidden(taps: Sequence[str], n_layers: int) -> set[int]:
    """Layers whose output is tapped: "hidden.3", "hidden.-1"."""
    return {int(t.split(".")[1]) % n_layers for t in taps if t.startswith("hidden.")}


def _key_rope(tape: Tape, register: int) -> Rope | None:
    """The rotary table that wrote a key register, None where keys carry no rotation."""
    for op in tape.ops:
        if op.out == register:
            return tape.ropes[op.attrs["rope"]] if op.kind == "rope" else None
    return None


def check_finite(name: str, value: NDArray[Any]) -> None:
    """Raises `CheckpointError`. NaN and infinity have all exponent bits set; looking at the bits is faster
    than converting."""
    bits = {
        "bfloat16": (np.uint16, 0x7F80), "float16": (np.uint16, 0x7C00), "float32": (np.uint32, 0x7F800000)
    }  # fmt: skip
    kind, mask = bits.get(value.dtype.name, (None, 0))
    flat = value if kind is None else value.view(kind)
    step = max(1, (1 << 20) // max(1, int(np.prod(value.shape[1:]))))

    def check(i: int) -> None:
        part = flat[i : i + step]
        bad = ~np.isfinite(part) if kind is None else (part & mask) == mask
        if bad.any():
            raise CheckpointError(
                f"tensor {name!r} holds NaN or infinite values ({int(bad.sum())} near row {i}): the "
                "checkpoint is damaged; download or convert it again"
            )

    side_by_side(check, range(0, len(flat), step))
