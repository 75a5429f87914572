"""Quantizing a model stage by stage: the embedding, each layer, the head.

A stage holds the weights of one layer at a time; between stages only the residual stream of the calibration
text remains. What a stage yields depends on nothing but the stages before it, so that work can be taken up
after any of them.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.model.quantized.stored import dense, floats
from pronghorn.model.tape import Op, Param, Tape
from pronghorn.ops.codes import Codes, Grid
from pronghorn.ops.panels import pack
from pronghorn.ops.ref import Ops
from pronghorn.quantize.awq import fold, scaled, search, sites
from pronghorn.quantize.methods import Quantizer
from pronghorn.quantize.seen import UNSEEN, Seen, look
from pronghorn.quantize.walk import Walk
from pronghorn.slots import WeightFormat
from pronghorn.types import Packed

Floats = NDArray[np.float32]
Numbered = list[tuple[int, Op]]
Made = dict[str, Any]  # name -> Packed, or an array of floats


@dataclass
class Stage:
    """What became of some of a model's tensors. x: the residual stream after it, (n_tokens, width), empty
    without text; notes: what could not be done, for people."""

    made: Made
    x: Floats
    notes: list[str] = field(default_factory=list)


def stages(tape: Tape) -> list[Numbered]:
    """The tape's ops, cut before and after each layer."""
    out: list[Numbered] = [[]]
    layer = -1
    for i, op in enumerate(tape.ops):
        if op.layer != layer:
            layer = op.layer
            out.append([])
        out[-1].append((i, op))
    return [ops for ops in out if ops]


def matrices(op: Op) -> tuple[Param, ...]:
    """The matrices of an op that may be quantized. A router stays as it is: it is small, and much depends on
    whom it chooses."""
    if op.kind == "moe":
        return op.params[1:]
    return op.params[: int(op.kind in ("embed", "linear", "head"))]


class Job:
    """tensors: the checkpoint's. formats: asked in turn which tensors they store. ids: (n_seqs, length) of
    calibration text, (0, 0) without."""

    def __init__(
        self, tape: Tape, tensors: Mapping[str, Any], formats: Sequence[WeightFormat], by: Quantizer,
        ids: NDArray[np.int32],
    ) -> None:  # fmt: skip
        self.tape, self.tensors, self.formats, self.by = tape, tensors, formats, by
        self.stages = stages(tape)
        self.done: set[str] = set()  # tensors of earlier stages
        self.walk = Walk(tape, tensors, ids)
        self.tick: Callable[[str], None] = lambda name: None  # called after each matrix

    def skip(self, names: set[str]) -> None:
        """Tensors that an earlier run has made already."""
        self.done |= names

    def resume(self, x: Floats, stage: int) -> None:
        """Go on with the residual stream before `stage`, as an earlier run left it."""
        (register,) = {r for _, op in self.stages[stage] for r in op.ins} - {
            op.out for _, op in self.stages[stage]
        }
        self.walk.regs = {register: x}

    def run(self, number: int) -> Stage:
        """Stages are run in order, each once. Raises `CheckpointError` for weights that have no codes."""
        run = _Run(self, self.stages[number])
        if self.by.text:
            run.with_text()
        else:
            run.by_weights()
        self.done |= set(run.made)
        left = list(self.walk.regs.values())
        return Stage(run.made, left[0] if left else np.zeros((0, 0), np.float32), run.notes)


class _Rows:
    """A packed embedding, of which a walk reads the rows that it needs."""

    def __init__(self, packed: Packed, fmt: WeightFormat) -> None:
        self.packed, self.fmt = packed, fmt

    def __getitem__(self, ids: NDArray[np.int32]) -> Any:
        return self.fmt.take(self.packed, ids, Ops("float32"))


class _Run:
    """One stage."""

    def __init__(self, job: Job, ops: Numbered) -> None:
        self.job, self.ops = job, ops
        self.made: Made = {}
        self.notes: list[str] = []
        self.now: dict[str, Any] = {}  # what the walk reads instead of the checkpoint's tensors
        self.tensors: Any = ChainMap(self.now, job.tensors)  # type: ignore[arg-type]
        self.readers: dict[int, list[Param]] = {}
        for _, op in ops:
            if op.kind in ("linear", "head"):
                self.readers.setdefault(op.ins[0], []).append(op.params[0])
        self.seen: dict[int, Seen] = {}

    # ------------------------------------------------------------------ with and without text

    def by_weights(self) -> None:
        for _, op in self.ops:
            for p in matrices(op):
                if self.format(p):
                    self.keep(p, self.coded(p, UNSEEN))

    def with_text(self) -> None:
        walk = self.job.walk
        walk.tensors = self.tensors
        if self.job.by.folds:
            before = dict(walk.regs)
            walk.run(self.ops, self.gather)
            walk.regs = before
            self.fold()
        walk.run(self.ops, self.prepare)

    def gather(self, params: Sequence[Param], x: Floats, register: int) -> None:
        if register >= 0 and register not in self.seen:
            self.seen[register] = look(x)

    def prepare(self, params: Sequence[Param], x: Floats, register: int) -> None:
        if register >= 0:
            params = self.readers[register]
        todo = [p for p in params if self.format(p)]
        todo = list({p.name: p for p in todo}.values())
        if not todo:
            return
        seen = look(x) if x.size else UNSEEN
        if register < 0 and not x.size and self.ops[0][1].kind == "embed":
            (p,) = todo
            fmt = self.format(p)
            packed = self.coded(p, UNSEEN)
            self.keep(p, packed)
            if packed.kind in ("codes", "float8"):
                self.now[p.name] = _Rows(packed, fmt)
            return
        shared: dict[Grid, list[Param]] = {}
        for p in todo:
            grid = getattr(self.format(p), "grid", None)
            if grid is not None and self.job.by.shares:
                shared.setdefault(grid, []).append(p)
            else:
                self.use(p, self.coded(p, seen))
        for grid, group in shared.items():
            rows = [floats(self.values(p)) for p in group]
            codes: Codes = self.job.by.codes(np.concatenate(rows) if len(rows) > 1 else rows[0], grid, seen)
            at = 0
            for p, w in zip(group, rows, strict=True):
                self.use(p, pack(codes[at : at + len(w)]))
                at += len(w)

    def fold(self) -> None:
        for site in sites(self.job.tape, [op for _, op in self.ops]):
            grids = {p.key: f.grid for p in site.readers if hasattr(f := self.format(p), "grid")}
            if len(grids) < len(site.readers) or site.register not in self.seen:
                continue
            weights = {p.key: floats(p.take(self.tensors)) for p in site.readers}
            s = search(weights, grids, self.seen[site.register], site)
            if (s == 1).all():
                continue
            for p in (*site.readers, *site.made_by):
                if p.name not in self.now:
                    self.now[p.name] = np.array(floats(self.job.tensors[p.name]))
            fold(self.now, site, s)
            self.seen[site.register] = scaled(self.seen[site.register], s)
            for p in site.made_by:
                own = np.asarray(self.job.tensors[p.name]).dtype if len(p.shape) == 2 else np.float32
                self.made[p.name] = self.now[p.name].astype(own)

    # ------------------------------------------------------------------ one matrix

    def format(self, p: Param) -> Any:
        """The format that stores a tensor, "" where it stays as it is."""
        if p.name in self.job.done or isinstance(self.made.get(p.name), Packed):
            return ""
        whole = p.shape if len(p.shape) == 2 else ()
        fmt = next((f for f in self.job.formats if f.claims(p.name, whole)), "")
        if fmt and p.transpose:
            note = "matrices that this model stores turned (n_in, n_out) stay as they are: pack them at load"
            if note not in self.notes:
                self.notes.append(note)
            return ""
        return fmt

    def values(self, p: Param) -> NDArray[Any]:
        """Of any float dtype: what quantizes widens as much at a time as it works on."""
        value = self.tensors[p.name]
        return value if isinstance(value, np.ndarray) else floats(value)

    def coded(self, p: Param, seen: Seen) -> Packed:
        fmt = self.format(p)
        grid = getattr(fmt, "grid", None)
        if grid is None or (self.job.by.text and not seen.n):
            return fmt.pack(self.values(p))  # type: ignore[no-any-return]
        return pack(self.job.by.codes(self.values(p), grid, seen))

    def keep(self, p: Param, packed: Packed) -> None:
        self.made[p.name] = packed
        self.job.tick(p.name)

    def use(self, p: Param, packed: Packed) -> None:
        """Keep it, and let the walk go on with what it stands for."""
        self.keep(p, packed)
        if p.view_shape[0] != self.job.tape.n_vocab:  # nobody reads logits
            self.now[p.name] = dense(packed)
