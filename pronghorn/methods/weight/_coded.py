"""What the formats of this folder share: names they claim, and reading codes."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.ops.codes import Grid
from pronghorn.ops.panels import PANEL, pack, unpack
from pronghorn.quantize.fit import fit
from pronghorn.types import Array, Guarantee, Packed, Traits


def wanted(only: str, name: str, shape: tuple[int, ...]) -> bool:
    """Whether `name` is a matrix that one of the patterns in `only` names: globs joined by "+"; "" names
    all. An output head tied to the embedding is one matrix and has the embedding's name, so
    `only=lm_head*+*embed*+*wte*` means the head whether it is tied or not."""
    return len(shape) == 2 and (not only or any(fnmatchcase(name, p) for p in only.split("+")))


def one_of(what: str, value: int, valid: Sequence[int]) -> None:
    """Raises `MethodError` for a value that is not there, naming those that are."""
    if value not in valid:
        listed = ", ".join(str(v) for v in valid)
        raise MethodError(f"{what} is {value}, but there are only {listed}")


class Coded:
    """A format of codes on a grid, which a subclass names in `grid`, with a field `only`."""

    traits = Traits(Guarantee.APPROXIMATE)
    only: str

    @property
    def grid(self) -> Grid:
        raise NotImplementedError

    def claims(self, name: str, shape: tuple[int, ...]) -> bool:
        return wanted(self.only, name, shape)

    def pack(self, w: NDArray[Any]) -> Packed:
        return pack(fit(w, self.grid))

    def matmul(self, x: Array, w: Packed, ops: Any) -> Array:
        """With `x` as it is: rounding it to `grid.activations` bits belongs to the kernels."""
        return ops.matmul(x, self.take(w, ops.array(np.arange(w.shape[0])), ops))

    def take(self, w: Packed, rows: Array, ops: Any) -> Array:
        rows = ops.numpy(rows)
        fields = {name: ops.numpy(a) for name, a in w.fields.items()}
        used, of = np.unique(rows // PANEL, return_inverse=True)
        fields["panels"] = fields["panels"][used]
        if "scale" in fields:
            scale = np.zeros(-(-w.shape[0] // PANEL) * PANEL, np.float32)
            scale[: w.shape[0]] = fields["scale"]
            fields["scale"] = scale.reshape(-1, PANEL)[used].reshape(-1)
        some = unpack(Packed(w.kind, (len(used) * PANEL, w.shape[1]), fields, w.grid))
        return ops.cast(ops.array(some[of * PANEL + rows % PANEL].dense()))


class Grouped(Coded):
    """Whole levels in groups of inputs, with an offset or without. A subclass names `bits` and has the
    fields."""

    bits: ClassVar[int]
    group: int
    symmetric: bool
    activations: int

    def __post_init__(self) -> None:
        one_of(f"int{self.bits}: group", self.group, (32, 64, 128))
        one_of(f"int{self.bits}: activations", self.activations, (8, 16))

    @property
    def grid(self) -> Grid:
        if self.symmetric:
            return Grid(self.bits, self.group, activations=self.activations)
        return Grid(self.bits, self.group, False, offset="value", activations=self.activations)
