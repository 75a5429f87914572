"""Matrices of small integers: what their codes mean, before any kernel's layout.

Every integer format (round to nearest, GPTQ, AWQ, the block types of GGUF) comes down to

    value[o, i] = a[o, g] * level(code[o, i]) + b[o, g],    g = i // group

with codes of a few bits, a scale a for each group of inputs and sometimes an offset b. `Grid` says how the
numbers are coded, `Codes` holds them. `ops.panels` turns them into what kernels read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUPER = 256  # inputs that share the outer scales of a grid in two steps


@dataclass(frozen=True)
class Grid:
    """How codes become values.

    bits: of a code: 2, 3, 4, 5, 6 or 8.
    group: inputs that share a scale: 16, 32, 64 or 128; 0: all inputs of an output. The last group of a
        row may be shorter.
    centred: the level of code c is c - 2**(bits - 1), else c.
    table: 16 levels, from -128 to 127, of 4-bit codes; then `centred` does not count.
    scale: "float16" or "bfloat16"; "float32" with group 0 only; "two": a = over[o, i // 256] times an
        int8 for each group.
    offset: "" for none; "value": b is stored, in the scale's dtype; "zero": b = -a * zero with a uint8
        zero for each group; "two": b = -under[o, i // 256] times a uint8 for each group.
    activations: bits to which the inputs of a product are rounded, 8 or 16, with a scale of their own for
        each group of a row (of 32 where groups are of 16, of 128 where a group is a whole row); groups of
        16 take 8.
    """

    bits: int
    group: int
    centred: bool = True
    table: tuple[int, ...] = ()
    scale: str = "float16"
    offset: str = ""
    activations: int = 8

    def __post_init__(self) -> None:
        two = self.scale == "two"
        ok = (
            self.bits in (2, 3, 4, 5, 6, 8)
            and self.group in (0, 16, 32, 64, 128)
            and (not self.table or (self.bits == 4 and len(self.table) == 16))
            and all(-128 <= t <= 127 for t in self.table)
            and self.scale in ("float16", "bfloat16", "float32", "two")
            and (self.scale == "float32") == (self.group == 0)
            and self.offset in (("", "two") if two else ("", "value", "zero"))
            and not (self.group == 0 and self.offset)
            and (self.activations == 8 or (self.activations == 16 and self.group != 16))
        )
        if not ok:
            raise ValueError(f"no such grid: {self}")

    @property
    def zero(self) -> int:
        """The code whose level is 0, where there is no table."""
        return 1 << (self.bits - 1) if self.centred else 0

    def n_groups(self, n_in: int) -> int:
        return -(-n_in // self.group) if self.group else 1


AS_THEY_COME = np.zeros(0, np.int32)


def is_order(order: NDArray[Any], n: int) -> bool:
    """Whether it names each number below n once."""
    return order.shape == (n,) and np.array_equal(np.sort(order), np.arange(n))


@dataclass(frozen=True)
class Codes:
    """A matrix (n_out, n_in) on a grid.

    code: uint8 (n_out, n_in), below 2**bits. scale: (n_out, n_groups) in the grid's dtype, int8 for "two";
    float32 (n_out, 1) for group 0. offset: (n_out, n_groups) in the scale's dtype or uint8, empty for
    none. over, under: float16 (n_out, ceil(n_in / 256)) for "two", else empty. order: int32 (n_in,), the
    input that each column of codes belongs to, where groups are of inputs that do not follow each other, else
    empty.

    Raises `ValueError` for arrays that do not fit.
    """

    grid: Grid
    code: NDArray[np.uint8]
    scale: NDArray[Any]
    offset: NDArray[Any]
    over: NDArray[np.float16]
    under: NDArray[np.float16]
    order: NDArray[np.int32] = field(default_factory=lambda: AS_THEY_COME)

    def __post_init__(self) -> None:
        g = self.grid
        n_out, n_in = self.code.shape
        groups, supers = (n_out, g.n_groups(n_in)), (n_out, -(-n_in // SUPER))
        two = g.scale == "two"
        scale = "int8" if two else g.scale
        offset = {"": "", "value": scale, "zero": "uint8", "two": "uint8"}[g.offset]
        wanted = {
            "scale": (self.scale, scale, groups),
            "offset": (self.offset, offset, groups if offset else None),
            "over": (self.over, "float16", supers if two else None),
            "under": (self.under, "float16", supers if g.offset == "two" else None),
        }
        if self.order.size and not (self.order.dtype == np.int32 and is_order(self.order, n_in)):
            raise ValueError("the order of inputs does not name each of them once")
        if self.code.dtype != np.uint8:
            raise ValueError(f"codes are uint8, not {self.code.dtype}")
        for name, (a, dtype, shape) in wanted.items():
            if a.size == 0 and shape is None:
                continue
            if shape is None or a.shape != shape or a.dtype.name != dtype:
                raise ValueError(
                    f"{name} is {a.dtype.name} {a.shape}, the grid wants {dtype or 'none'} {shape or ''}"
                )

    @property
    def shape(self) -> tuple[int, int]:
        return self.code.shape[0], self.code.shape[1]

    def __getitem__(self, rows: slice | NDArray[Any]) -> Codes:
        """Some of the outputs."""

        def cut(a: NDArray[Any]) -> NDArray[Any]:
            return a[rows] if a.size else a

        return replace(
            self, code=self.code[rows], scale=cut(self.scale), offset=cut(self.offset),
            over=cut(self.over), under=cut(self.under),
        )  # fmt: skip

    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """a and b, float32 (n_out, n_groups)."""
        g = self.grid
        a = self.scale.astype(np.float32)
        if g.scale == "two":
            of = np.arange(a.shape[1]) * g.group // SUPER
            a = self.over.astype(np.float32)[:, of] * a
        if not g.offset:
            return a, np.zeros_like(a)
        b = self.offset.astype(np.float32)
        if g.offset == "zero":
            b = -(a * b)
        elif g.offset == "two":
            b = -(self.under.astype(np.float32)[:, of] * b)
        return a, b

    def levels(self) -> NDArray[np.int16]:
        """(n_out, n_in)."""
        g = self.grid
        if g.table:
            level: NDArray[np.int16] = np.asarray(g.table, np.int16)[self.code]
        else:
            level = self.code.astype(np.int16) - np.int16(g.zero)
        return level

    def dense(self) -> NDArray[np.float32]:
        """The values (n_out, n_in): one product and one sum each, in float32."""
        a, b = self.factors()
        of = np.arange(self.shape[1]) // self.grid.group if self.grid.group else np.zeros(1, np.intp)
        values: NDArray[np.float32] = a[:, of] * self.levels() + b[:, of]
        if not self.order.size:
            return values
        out = np.empty_like(values)
        out[:, self.order] = values
        return out


NONE = np.zeros(0, np.float16)  # where a grid has no offset, over or under
