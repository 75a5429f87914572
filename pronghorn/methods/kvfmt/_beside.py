"""What a page has beside its codes: a product of low rank, spikes, bits that tell which channels or rows.

Sums are made by halves, so that every array library has the same bits.
"""

from __future__ import annotations

from typing import Any

from pronghorn.types import Array

LOOPS = 3  # of power iteration


def total(x: Array, axis: int, ops: Any) -> Array:
    """The sum along an axis."""
    x = ops.xp.moveaxis(x, axis, 0)
    while len(x) > 1:
        half = len(x) // 2
        y = x[:half] + x[half : 2 * half]
        x = ops.xp.concat([y, x[2 * half :]]) if len(x) % 2 else y
    return x[0]


def bfloat(x: Array, ops: Any) -> Array:
    """Rounded to bfloat16, in the dtype that x has."""
    return ops.to(ops.to(ops.to(x, "float32"), "bfloat16"), str(x.dtype).removeprefix("torch."))


def each(n: int, ops: Any, like: Array) -> Array:
    """(n, 1): numbers of pages, to pick by."""
    return ops.xp.arange(n, device=like.device)[:, None]


# ------------------------------------------------------------------------------ low rank


def low_rank(x: Array, rank: int, ops: Any) -> Array:
    """Factors (n, rank * (page + dim)), bfloat16, of a matrix near x (n, page, dim), by power iteration from
    the longest row on. A row's factor is cut where x less the product would be larger than x's largest."""
    xp = ops.xp
    unit = above_zero(largest(x, ops), ops)
    left, rows, channels = x / unit[..., None], [], []
    for _ in range(rank):
        longest = xp.argmax(total(left * left, 2, ops), axis=1)[:, None]
        b = left[each(len(x), ops, x), longest][:, 0]
        for _ in range(LOOPS):
            a = total(left * _unit(b, ops)[:, None], 2, ops)
            b = total(left * a[..., None], 1, ops)
        b = bfloat(_unit(b, ops), ops)
        a = total(left * b[:, None], 2, ops) / above_zero(total(b * b, 1, ops)[:, None], ops)
        p = a[..., None] * b[:, None]
        room = xp.where(p * left > 0, 1 + xp.abs(left), 1 - xp.abs(left)) / xp.clip(xp.abs(p), 2.0**-60, None)
        a = bfloat(a * xp.clip(xp.min(room, axis=2), 0, 1) * unit, ops)
        left = left - (a / unit)[..., None] * b[:, None]
        rows.append(a)
        channels.append(b)
    return ops.to(xp.concat(rows + channels, axis=1), "bfloat16")


def product(factors: Array, rank: int, page: int, ops: Any) -> Array:
    """What factors (n, rank * (page + dim)) mean: (n, page, dim)."""
    n, dim = len(factors), factors.shape[1] // rank - page
    rows = factors[:, : rank * page].reshape((n, rank, page, 1))
    channels = factors[:, rank * page :].reshape((n, rank, 1, dim))
    return total(rows * channels, 1, ops)


def largest(x: Array, ops: Any) -> Array:
    """The largest magnitude of each page of x (n, page, dim): (n, 1)."""
    return ops.xp.max(ops.xp.max(ops.xp.abs(x), axis=2), axis=1)[:, None]


def _unit(b: Array, ops: Any) -> Array:
    """With 1 as the largest number; a root would be other bits in other libraries."""
    return b / above_zero(ops.xp.max(ops.xp.abs(b), axis=1), ops)[:, None]


def above_zero(x: Array, ops: Any) -> Array:
    return ops.xp.where(x > 0, x, ops.xp.ones_like(x))


# ------------------------------------------------------------------------------ spikes


def take_spikes(x: Array, group: int, spikes: int, ops: Any) -> tuple[Array, Array]:
    """x (n, page, dim) without its spikes, and those (n, spikes, 2), int16.

    They are the largest or the smallest number of a channel (group 0), or of `group` channels of a row, where
    the range without it is smaller by most, in squares. The next number stands in its place."""
    xp, (n, page, dim) = ops.xp, x.shape
    gains, places, nexts = [], [], []
    unit = above_zero(largest(x, ops), ops)
    row, channel = (xp.arange(size, device=x.device) for size in (page, dim))
    for at in range(0, dim, group or dim):
        part = x[..., at : at + group] if group else x
        axis = 2 if group else 1
        rising, size = xp.sort(part, axis=axis), part.shape[axis]
        rising = xp.moveaxis(rising, axis, 0)
        low, top = rising[0], rising[-1]
        for best, other, near in (
            (xp.argmax(part, axis=axis), low, rising[max(size - 2, 0)]),
            (xp.argmin(part, axis=axis), top, rising[min(1, size - 1)]),
        ):
            gains.append(((top - low) / unit) ** 2 - ((near - other) / unit) ** 2)
            places.append((best + at) * page + row if group else channel * page + best)
            nexts.append(near)
    order = xp.argsort(-xp.concat(gains, axis=1), axis=1, stable=True)[:, :spikes]
    pages = each(n, ops, x)
    place, near = (xp.concat(a, axis=1)[pages, order] for a in (places, nexts))
    flat = _by_place(x, ops)
    numbers = ops.view(ops.to(ops.to(flat[pages, place], "float32"), "bfloat16"), "int16")
    flat[pages, place] = near
    return _from_places(flat, page, ops), xp.stack([ops.to(place, "int16"), numbers], axis=-1)


def with_spikes(x: Array, spikes: Array, ops: Any, number: float | None = None) -> Array:
    """x (n, page, dim) with its spikes in their places; with `number` instead where it is given."""
    flat, place = _by_place(x, ops), ops.to(spikes[..., 0], "int64")
    there = ops.cast(ops.view(spikes[..., 1], "bfloat16"))
    flat[each(len(x), ops, x), place] = there if number is None else number
    return _from_places(flat, x.shape[1], ops)


def _by_place(x: Array, ops: Any) -> Array:
    """A copy, (n, channel * page + row)."""
    n, page, dim = x.shape
    return ops.xp.asarray(ops.xp.permute_dims(x, (0, 2, 1)).reshape((n, dim * page)), copy=True)


def _from_places(flat: Array, page: int, ops: Any) -> Array:
    return ops.xp.permute_dims(flat.reshape((len(flat), flat.shape[1] // page, page)), (0, 2, 1))


# ------------------------------------------------------------------------------ channels


def keep_channels(x: Array, weight: Array, kept: int, ops: Any) -> tuple[Array, Array]:
    """Of x (n, page, dim) the `kept` channels of most weight (n, dim), of equal ones the first: (n, kept,
    page) and a bit for each channel that is there (n, bytes)."""
    xp, n = ops.xp, len(x)
    there = most(weight, kept, ops)
    pages, chosen = each(n, ops, x), _order(1 - ops.to(there, "int32"), ops)[:, :kept]
    return xp.permute_dims(x, (0, 2, 1))[pages, chosen], to_bits(there, ops)


def spread(x: Array, mask: Array | None, dim: int, ops: Any) -> Array:
    """The inverse of `keep_channels`, zeros where a channel is not there; without a mask all are."""
    xp, x = ops.xp, ops.cast(x)
    if mask is not None:
        x = placed(x, from_bits(mask, dim, ops), xp.zeros_like(x[:, :1]), ops)
    return xp.permute_dims(x, (0, 2, 1))


def most(x: Array, n: int, ops: Any) -> Array:
    """The n largest of each row of x (rows, m), of equal ones the first: bool."""
    return _order(_order(-x, ops), ops) < n


def to_bits(there: Array, ops: Any) -> Array:
    """A bit for each of there (n, m) bool, from the lowest up: uint8 (n, bytes)."""
    xp, (n, m) = ops.xp, there.shape
    size = -(-m // 8)
    bits = xp.zeros((n, size * 8), dtype=ops.dtype_of("int32"), device=there.device)
    bits[:, :m] = ops.to(there, "int32")
    shifts = xp.arange(8, dtype=ops.dtype_of("int32"), device=there.device)
    return ops.to(xp.sum(bits.reshape((n, size, 8)) << shifts, axis=-1), "uint8")


def from_bits(mask: Array, m: int, ops: Any) -> Array:
    """The inverse of `to_bits`, int32."""
    shifts = ops.xp.arange(8, dtype=ops.dtype_of("int32"), device=mask.device)
    bits = ops.to(mask, "int32")[..., None] >> shifts & 1
    return bits.reshape((len(mask), 8 * mask.shape[1]))[:, :m]


def placed(x: Array, there: Array, other: Array, ops: Any) -> Array:
    """x (n, kept, ...) in turn where `there` (n, m) is not 0, and what `other` has elsewhere."""
    number = ops.xp.clip(_order(_order(1 - there, ops), ops), 0, x.shape[1] - 1)
    return ops.xp.where(there[..., None] > 0, x[each(len(x), ops, x), number], other)


def _order(x: Array, ops: Any) -> Array:
    return ops.xp.argsort(x, axis=1, stable=True)
