"""AWQ (Lin et al., 2023, arXiv 2306.00978, section 3.2): inputs that are usually large get weights that are
rounded finer.

The columns of all products of one input are multiplied by s and what made the input is divided by it, which
changes nothing before rounding: mean|x|^alpha, with the alpha of 20 whose rounded products differ least on
the calibration text. The other side of s goes into the weight of a norm, or into the rows of a product that
reaches the input through nothing but a gate or an attention's values, where all query heads of a value head
share it. Where that is possible follows from the tape, not from the architecture's name. Departures: the
error is that of the products themselves, from the mean of x x^T, not of a whole block; there is no search
for clipping, since `quantize.fit` clips where that lowers the error, weighted here by the importance of
inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pronghorn.model.tape import Op, Param, Tape
from pronghorn.ops.codes import Codes, Grid
from pronghorn.quantize.fit import fit
from pronghorn.quantize.seen import Seen

Floats = NDArray[np.float32]

ALPHAS = np.arange(0, 1, 0.05)
LEAST = 1e-4  # of a factor


@dataclass(frozen=True)
class Site:
    """One input of products: its register, the matrices that read it, and what a factor of it is folded
    into: vectors of a norm, or rows and bias of a product. repeat: (heads of values, query heads of each,
    size) where one value serves several places of the input."""

    register: int
    readers: tuple[Param, ...]
    made_by: tuple[Param, ...]
    is_norm: bool
    repeat: tuple[int, int, int] = (0, 0, 0)


def sites(tape: Tape, ops: Sequence[Op]) -> list[Site]:
    """The inputs among `ops` (of one layer) that can be scaled."""
    made = {op.out: op for op in tape.ops if op.out >= 0}
    read: dict[int, list[Op]] = {}
    times: dict[str, int] = {}
    for op in tape.ops:
        for r in op.ins:
            read.setdefault(r, []).append(op)
        for p in op.params:
            times[p.key] = times.get(p.key, 0) + 1

    def alone(p: Sequence[Param]) -> bool:
        return all(times[x.key] == 1 for x in p)

    out = []
    for r in dict.fromkeys(op.ins[0] for op in ops if op.kind == "linear"):
        if any(op.kind != "linear" for op in read[r]):
            continue
        readers = tuple(op.params[0] for op in read[r])
        if not alone(readers):
            continue
        by, repeat = made[r], (0, 0, 0)
        if by.kind == "glu":
            by = made[by.ins[1]]
        elif by.kind == "attend":
            a, by = by.attrs, made[by.ins[2]]
            repeat = (a["n_kv"], a["n_heads"] // a["n_kv"], a["head_dim"])
        elif not (by.kind == "norm" and by.attrs["group"] == tape.widths[r]):
            continue
        if (
            by.kind not in ("norm", "linear")
            or (len(read[by.out]) != 1 and by.out != r)
            or not alone(by.params)
        ):
            continue
        out.append(Site(r, readers, by.params, by.kind == "norm", repeat))
    return out


def search(weights: Mapping[str, Floats], grids: Mapping[str, Grid], seen: Seen, site: Site) -> Floats:
    """Factors (n_in,) of an input. weights: matrix of each reader by key; grids: by key, for those that are
    to be quantized."""
    typical = np.maximum(_shared(seen.mean, site.repeat), LEAST)
    best, least = np.ones_like(typical), np.inf
    for alpha in ALPHAS:
        s = typical ** np.float32(alpha)
        s = np.maximum(s / np.sqrt(s.max() * s.min()), LEAST)
        total = 0.0
        for key, grid in grids.items():
            w = weights[key]
            wrong = awq(w * s, grid, scaled(seen, s)).dense() / s - w
            total += float(np.einsum("oi,oi->", wrong @ seen.hessian, wrong))
        if total < least:
            best, least = s, total
    return best


def awq(w: NDArray[np.float32], grid: Grid, seen: Seen) -> Codes:
    """Codes of a matrix that is scaled already."""
    return fit(w, grid, seen.importance) if seen.n else fit(w, grid)


def scaled(seen: Seen, s: Floats) -> Seen:
    """What is seen of an input that was divided by s."""
    return replace(seen, hessian=seen.hessian / np.outer(s, s), mean=seen.mean / s)


def _shared(x: Floats, repeat: tuple[int, int, int]) -> Floats:
    """Means over the places that share a factor, at each of them."""
    if not repeat[0]:
        return x
    heads = x.reshape(repeat)
    out: Floats = np.broadcast_to(heads.mean(axis=1, keepdims=True), heads.shape).reshape(-1)
    return out


def fold(tensors: dict[str, NDArray[np.float32]], site: Site, s: Floats) -> None:
    """Put factors into float32 copies of the tensors concerned, in place."""
    for p in site.readers:
        view = p.take(tensors)
        view *= s
    if site.repeat[0]:
        s = s.reshape(site.repeat)[:, 0].reshape(-1)
    for p in site.made_by:
        whole = replace(p, add=0.0).take(tensors)
        whole += np.float32(p.add)
        whole /= s[:, None] if whole.ndim == 2 else s
        whole -= np.float32(p.add)
