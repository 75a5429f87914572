"""What selectors of pages share: what `types.Choice` means, and how rows become index fields.

The native runner acts on a choice by itself; this is what it must come to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE
from pronghorn.types import Array, Choice, Field, Selection

STEPS = 4096  # a score is rounded to this fraction of the largest


class Pages:
    """A selector that reads `choice.pages` pages. Layers choose for themselves, from `dense_layers` on."""

    dense = False
    dense_layers: int

    @property
    def choice(self) -> Choice:
        raise NotImplementedError

    def sources(self, n_layers: int) -> Sequence[int]:
        return [i if i >= self.dense_layers else -1 for i in range(n_layers)]

    def of(self, tables: Mapping[str, Any], layer: int, head: int) -> Any:
        return self

    def score(self, q: Array, index: dict[str, Array], ops: Any) -> Array:
        """See `scores`."""
        return scores(self.choice.score, q, index, ops)

    def select(self, q: Array, index: dict[str, Array], ops: Any) -> Selection:
        return Selection(chosen(self.choice, self.score(q, index, ops), ops))


class Boxes(Pages):
    """One that goes by a box around the keys of each page."""

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return (Field("lo", "bfloat16", (1, dim), rows=-1), Field("hi", "bfloat16", (1, dim), rows=-1))

    def index(self, k: Array, valid: Array, ops: Any) -> dict[str, Array]:
        return boxes(k, valid, ops)


def scores(score: str, q: Array, index: dict[str, Array], ops: Any) -> Array:
    """q (n, g, dim) -> (n, g, n_pages): a page's score for each query head."""
    xp = ops.xp
    if score == "bounds":
        zero = xp.zeros_like(q)
        lo, hi = index["lo"], index["hi"]  # (n_pages, n, dim)
        flat = lo.shape[0] * lo.shape[1]
        up = xp.matmul(xp.where(q > 0, q, zero), hi.reshape((flat, -1)).T)
        down = xp.matmul(xp.where(q < 0, q, zero), lo.reshape((flat, -1)).T)
        return xp.max((up + down).reshape((*q.shape[:2], *lo.shape[:2])), axis=-1)
    if score == "dots":
        mean = index["mean"]
        dots = xp.matmul(q, mean.reshape((mean.shape[0] * mean.shape[1], -1)).T)
        return xp.max(dots.reshape((*q.shape[:2], *mean.shape[:2])), axis=-1)
    if score == "labels":
        label = index["label"]  # (n_pages, n, page)
        at = ops.to(index["channel"], "int64").reshape((-1,))
        part = q[:, :, at].reshape((*q.shape[:2], *label.shape[:2])) * index["unit"]
        return xp.max(xp.matmul(part[..., None, :], label)[..., 0, :], axis=-1)
    if score == "codes":
        code = ops.to(index["code"], "int64")  # (n_pages, groups, page)
        book = index["book"]  # (groups, codes, part)
        groups, _, part = book.shape
        turned = xp.matmul(q, index["unturn"]).reshape((*q.shape[:2], groups, part))
        total: Array = 0
        for g in range(groups):
            table = xp.matmul(turned[:, :, g], book[g].T)
            total = total + xp.take(table, code[:, g].reshape((-1,)), axis=-1)
        return xp.max(total.reshape((*q.shape[:2], code.shape[0], code.shape[2])), axis=-1)
    k, valid = index["k"], index["valid"]
    dots = xp.matmul(q, k.reshape((k.shape[0] * k.shape[1], -1)).T).reshape((*q.shape[:2], *valid.shape))
    return xp.max(xp.where(valid, dots, xp.full_like(dots, -math.inf)), axis=-1)


def chosen(c: Choice, score: Array, ops: Any) -> Array:
    """score (n, g, n_pages) -> (n, n_pages) bool."""
    xp = ops.xp
    n_rows, _, n_pages = score.shape
    if n_pages <= c.pages:
        return xp.ones((n_rows, n_pages), dtype=xp.bool, device=score.device)
    if c.heads == "vote":
        weight = xp.exp(score - xp.max(score, axis=-1, keepdims=True))
        score = weight / xp.sum(weight, axis=-1, keepdims=True)
    score = xp.max(score, axis=1) if c.heads == "max" else xp.sum(score, axis=1)
    n_spans = -(-n_pages // c.span)
    if n_spans * c.span > n_pages:
        rest = xp.full(
            (n_rows, n_spans * c.span - n_pages), -math.inf, dtype=score.dtype, device=score.device
        )
        score = xp.concat([score, rest], axis=1)
    score = xp.max(score.reshape((n_rows, n_spans, c.span)), axis=-1)
    top = xp.max(xp.abs(score), axis=-1, keepdims=True)
    step = xp.where(top > 0, top / STEPS, xp.ones_like(top))
    level = xp.round(score / step)
    at = xp.arange(n_spans, device=score.device)
    always = (at < c.first) | (at >= n_spans - c.last)
    level = xp.where(always, xp.full_like(level, STEPS + 1), level)
    order = xp.argsort(-level, axis=-1, stable=True)
    rank = xp.argsort(order, axis=-1, stable=True)
    best = rank < c.pages // c.span
    if c.cover < 1:
        better = ops.to(rank[:, None, :] < rank[:, :, None], ops.name)  # (n, a span, those before it)
        before = xp.sum(better * score[:, None, :], axis=-1)
        best = best & (always | (before < c.cover * xp.sum(score, axis=-1, keepdims=True)))
    return xp.broadcast_to(best[..., None], (n_rows, n_spans, c.span)).reshape((n_rows, -1))[:, :n_pages]


# ------------------------------------------------------------------------------ index fields


def boxes(k: Array, valid: Array, ops: Any, n: int = 1) -> dict[str, Array]:
    """Fields "lo" and "hi" (n_pages, n, dim) of n equal parts of each page, rounded outwards to bfloat16."""
    xp = ops.xp
    shape = (k.shape[0], n, k.shape[1] // n, k.shape[2])
    here = valid.reshape((*shape[:3], 1))
    k = k.reshape(shape)
    lo = xp.min(xp.where(here, k, xp.full_like(k, math.inf)), axis=2)
    hi = xp.max(xp.where(here, k, xp.full_like(k, -math.inf)), axis=2)
    none = ~xp.any(here, axis=2)  # parts without a row: those of the page's first part
    lo, hi = (xp.where(none, a[:, :1], a) for a in (lo, hi))
    return {"lo": -_up(-lo, ops), "hi": _up(hi, ops)}


def _up(x: Array, ops: Any) -> Array:
    """The next number of bfloat16 that is not smaller, or the one after it."""
    near = ops.cast(ops.to(x, "bfloat16"))
    more = ops.cast(ops.to(x + ops.xp.abs(x) / 128 + 1e-37, "bfloat16"))
    return ops.xp.where(near < x, more, near)


def filled(k: Array, valid: Array, ops: Any) -> Array:
    """k with rows that are not there replaced by the page's first that is."""
    xp = ops.xp
    first = xp.argmax(ops.to(valid, "int32"), axis=1)
    at = xp.arange(k.shape[0], device=k.device)
    return xp.where(valid[..., None], k, k[at, first][:, None])


def means(k: Array, weight: Array, ops: Any) -> Array:
    """k (n_pages, page, dim), weight (n_pages, n, page) 0 or 1 -> means (n_pages, n, dim), 0 of nothing."""
    xp = ops.xp
    total = xp.sum(weight, axis=-1)[..., None]
    return xp.sum(weight[..., None] * k[:, None], axis=2) / xp.where(total > 0, total, xp.ones_like(total))


def rounded(x: Array, ops: Any) -> Array:
    """x (n_pages, ...) on a grid of 1/4096 of each page's largest: last bits do not decide."""
    xp = ops.xp
    top = xp.max(xp.abs(x), axis=tuple(range(1, len(x.shape))), keepdims=True)
    return xp.round(x / xp.where(top > 0, top / STEPS, xp.ones_like(top)))


def whole(tokens: int, least: int = 1) -> int:
    """Pages that hold `tokens` rows."""
    return max(least, -(-tokens // PAGE))


def cosine(name: str, **options: float) -> None:
    """Raises `MethodError` for what is none."""
    for key, value in options.items():
        if not -1 <= value <= 1:
            raise MethodError(f"{name}: {key} is -1 to 1, not {value}")
