"""Random models written straight as tapes, and a small driver of a runner and its store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from pronghorn.kv.store import Store
from pronghorn.model.bind import Bound, bind
from pronghorn.model.rope import Rope
from pronghorn.model.tape import Param, Tape
from pronghorn.nulls import Dense, ExactKV
from pronghorn.types import Rows


@dataclass(frozen=True)
class Model:
    """What varies between the random models."""

    layers: int = 2
    heads: int = 4
    n_kv: int = 2
    dim: int = 16
    width: int = 48
    hidden: int = 72
    vocab: int = 101
    tied: bool = True
    bias: bool = False
    layer_norm: bool = False
    head_norm: bool = False
    wpe: bool = False
    rope: Rope | None = None
    window: int = 0  # on every other layer
    softcap: float = 0.0
    fn: str = "silu"
    plain_mlp: bool = False
    experts: int = 0
    top_k: int = 2
    renorm: bool = True
    scale: float = 1.0
    dtype: str = "float32"
    formats: tuple[Any, ...] = ()


def build(m: Model, seed: int = 0, taps: tuple[str, ...] = ()) -> Bound:
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    tape = Tape(m.layers, m.heads, m.n_kv, m.dim, m.vocab, 4096)

    def matrix(name: str, *shape: int) -> Param:
        if name not in tensors:
            w = rng.normal(size=shape) / np.sqrt(shape[-1])
            tensors[name] = w.astype(ml_dtypes.bfloat16 if m.dtype == "bfloat16" else np.float32)
        return Param(name, shape)

    def vector(name: str, n: int, mean: float) -> Param:
        tensors.setdefault(name, (mean + 0.2 * rng.normal(size=n)).astype(np.float32))
        return Param(name, (n,))

    def bias(name: str, n: int) -> tuple[Param, ...]:
        return (vector(name, n, 0.0),) if m.bias else ()

    def normed(x: int, name: str, n: int) -> int:
        mode = "layer" if m.layer_norm else "rms"
        b = (vector(name + ".b", n, 0.0),) if m.layer_norm else ()
        return tape.norm(x, vector(name, n, 1.0), 1e-5, *b, mode=mode, group=n)

    q, kv = m.heads * m.dim, m.n_kv * m.dim
    embedding = matrix("embed", m.vocab, m.width)
    x = tape.embed(embedding, m.scale)
    if m.wpe:
        tensors["wpe"] = rng.normal(size=(512, m.width)).astype(np.float32) * np.float32(0.1)
        x = tape.wpe(x, Param("wpe", (512, m.width)))
    table = -1 if m.wpe else tape.rope_table(m.rope or Rope(m.dim // 2 * 2, 10000.0))
    for i in range(m.layers):
        tape.begin(i, x)
        h = normed(x, f"{i}.norm", m.width)
        parts = []
        for name, n, heads in (("q", q, m.heads), ("k", kv, m.n_kv), ("v", kv, 0)):
            y = tape.linear(h, matrix(f"{i}.{name}", n, m.width), *bias(f"{i}.{name}.b", n))
            if heads and m.head_norm:
                y = tape.norm(y, vector(f"{i}.{name}.norm", m.dim, 1.0), 1e-6, group=m.dim)
            if heads and table >= 0:
                y = tape.rope(y, table, heads)
            parts.append(y)
        window = m.window if i % 2 == 0 else 0
        a = tape.attend(*parts, scale=m.dim**-0.5, softcap=m.softcap, window=window)
        x = tape.add(x, tape.linear(a, matrix(f"{i}.o", m.width, q), *bias(f"{i}.o.b", m.width)))
        h = normed(x, f"{i}.norm2", m.width)
        if m.experts:
            experts = [
                (
                    matrix(f"{i}.{e}.gate", m.hidden, m.width),
                    matrix(f"{i}.{e}.up", m.hidden, m.width),
                    matrix(f"{i}.{e}.down", m.width, m.hidden),
                )
                for e in range(m.experts)
            ]
            router = matrix(f"{i}.router", m.experts, m.width)
            y = tape.moe(h, router, experts, m.top_k, m.renorm, m.fn)
        elif m.plain_mlp:
            y = tape.linear(h, matrix(f"{i}.up", m.hidden, m.width), *bias(f"{i}.up.b", m.hidden))
            y = tape.linear(tape.act(y, m.fn), matrix(f"{i}.down", m.width, m.hidden))
        else:
            gate = tape.linear(h, matrix(f"{i}.gate", m.hidden, m.width))
            up = tape.linear(h, matrix(f"{i}.up", m.hidden, m.width))
            y = tape.linear(tape.glu(gate, up, m.fn), matrix(f"{i}.down", m.width, m.hidden))
        x = tape.end(tape.add(x, y if m.scale == 1.0 else tape.scale(y, 0.7)))
    x = normed(x, "norm", m.width)
    head = embedding if m.tied else matrix("head", m.vocab, m.width)
    tape.head(x, head, *bias("head.b", m.vocab), scale=1.0 / m.scale, softcap=m.softcap)
    return bind(tape, tensors, m.formats, taps=taps)


def store_for(bound: Bound, ops: Any, kv: str = "float32", fmt: Any = None, selector: Any = None,
              rows: str = "seq") -> Store:  # fmt: skip
    return Store(
        ops, bound.n_layers, bound.n_kv, bound.head_dim, kv, fmt or ExactKV(),
        selector or Dense(), rows, list(bound.kv_ropes), bound.attention,
    )  # fmt: skip


@dataclass
class Chunk:
    """Rows of one sequence in a step: token ids, parents within the chunk (-1: the committed rows; empty:
    a chain), rows committed afterwards (-1: all)."""

    seq: int
    ids: list[int]
    parent: list[int] = field(default_factory=list)
    commit: list[int] | None = None


class Driver:
    """Runs steps as the engine would: positions follow the committed length and the tree's depth."""

    def __init__(self, runner: Any, n_seqs: int) -> None:
        self.runner = runner
        self.kvs = [runner.store.new() for _ in range(n_seqs)]
        self.out: Any = None

    def step(self, chunks: list[Chunk], taps: bool = False) -> list[np.ndarray]:
        """Logits of every row, per chunk."""
        ids, pos, span, seq, parent = [], [], [], [], []
        for c in chunks:
            first, depth = len(ids), []
            for i, t in enumerate(c.ids):
                p = c.parent[i] if c.parent else i - 1
                depth.append(0 if p < 0 else depth[p] + 1)
                ids.append(t)
                pos.append(self.kvs[c.seq].next_pos + depth[-1])
                span.append(pos[-1] + 1)
                seq.append(c.seq)
                parent.append(p if p < 0 else first + p)
        columns = [np.array(a, np.int32) for a in (ids, pos, span, seq, parent)]
        rows = Rows(*columns, np.ones(len(ids), np.int32))
        self.out = self.runner.run(rows, self.kvs, taps)
        answer, first = [], 0
        for c in chunks:
            n = len(c.ids)
            answer.append(np.array(self.out.logits[first : first + n]))
            keep = np.array(range(n) if c.commit is None else c.commit, np.int32)
            if len(keep):
                at = (first + keep).astype(np.int32)
                kv = self.kvs[c.seq]
                self.runner.commit(at, *self.runner.store.reserve(kv, len(at)))
                self.runner.store.extend(kv, rows.pos[at])
            first += n
        return answer


def tokens(n: int, vocab: int = 101, seed: int = 1) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, vocab, n)]


def in_company(runner: Any, text: list[int], more: list[int], sizes: list[int], forks: int) -> np.ndarray:
    """Logits of `more` behind the sealed rows of `text`, run in chunks of `sizes`, beside forks that share
    the pages and run the same."""
    d = Driver(runner, 1)
    d.step([Chunk(0, text)])
    runner.store.seal(d.kvs[0])
    d.kvs += [runner.store.fork(d.kvs[0]) for _ in range(forks)]
    out, at, i = [], 0, 0
    while at < len(more):
        part = more[at : at + sizes[i % len(sizes)]]
        out.append(d.step([Chunk(j, part) for j in range(forks + 1)])[0])
        at, i = at + len(part), i + 1
    return np.concatenate(out)
