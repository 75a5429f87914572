"""Bytes and operations that a step cannot do without, whoever runs it.

Bytes: the weights once, as the format packs them (of an embedding that is not also the head only the rows
looked up, which do not count), and the keys and values that are attended to. Operations: two for each
weight and row (of the head only for rows whose logits are wanted), and four for each channel of a query
head and key. What a kernel does besides, such as unpacking, counts against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pronghorn.kv.layout import PAGE

if TYPE_CHECKING:
    from pronghorn.bench.cells import Cell
    from pronghorn.engine import Engine


@dataclass(frozen=True)
class Model:
    """What a loaded model costs.

    weight_bytes: that a step reads; body, head: arithmetic ("fp32", "bf16", "int8") -> weights that each
    row is multiplied with; kv_row: bytes of a stored row, all layers; attend: operations for a row and a
    key in one layer; windows: of each layer, 0 for none; attend_kind: its arithmetic.
    """

    weight_bytes: int
    body: dict[str, int]
    head: dict[str, int]
    kv_row: float
    attend: int
    attend_kind: str
    windows: tuple[int, ...]
    context: int

    @property
    def n_weights(self) -> int:
        return sum(self.body.values()) + sum(self.head.values())


@dataclass(frozen=True)
class Cost:
    """Of a whole prompt, or of one step. operations: by kind of arithmetic."""

    n_bytes: float
    operations: dict[str, float]


def model_of(engine: Engine) -> Model:
    """The costs of a loaded model. Of experts that are chosen row by row, operations count the chosen
    ones and bytes all of them."""
    bound, store = engine.bound, engine.store
    body: dict[str, int] = {}
    head: dict[str, int] = {}
    for op in bound.ops:
        share, params = 1.0, op.params[:1]
        if op.kind == "moe":
            share, params = op.attrs["top_k"] / op.attrs["n_experts"], op.params[1:]
        elif op.kind not in ("linear", "head"):
            continue
        for p in params:
            if p.key not in bound.mats:
                continue
            packed = bound.mats.form(p.key)
            of = head if op.kind == "head" else body
            kind = arithmetic(packed)
            of[kind] = of.get(kind, 0) + int(share * packed.shape[0] * packed.shape[1])
    exe = getattr(engine.runner, "exe", None)
    weight_bytes = bound.weight_bytes if exe is None else exe.weight_bytes
    layout = store.sealed_layout if store.packed else store.open_layout
    kv_row = layout.block * len(layout.groups) / PAGE
    return Model(
        int(weight_bytes), body, head, kv_row, 4 * bound.n_heads * bound.head_dim,
        "fp32" if store.open_dtype == "float32" else "bf16", tuple(w for _, w, _ in bound.attention),
        bound.context,
    )  # fmt: skip


def arithmetic(packed: Any) -> str:
    """The fastest arithmetic that a packed matrix's own rounding allows: float32 matrices need that; codes
    whose inputs are rounded to 8 bits multiply in int8; everything else takes bfloat16."""
    if packed.kind == "float32":
        return "fp32"
    grid = getattr(packed, "grid", None)
    return "int8" if grid is not None and grid.activations == 8 else "bf16"


def cost(cell: Cell, m: Model, steps: int) -> Cost:
    """Of a cell. steps: measured one after the other, each with one row more to attend to."""
    if cell.kind == "prefill":
        keys = sum(_prompt_keys(cell.rows, w) for w in m.windows)
        return Cost(m.weight_bytes + cell.rows * m.kv_row, _operations(m, cell.rows, 1, keys))
    context = cell.context + steps / 2 if cell.kind == "decode" else float(cell.context)
    kept = sum(min(context, w) if w else context for w in m.windows) / max(1, len(m.windows))
    seqs = cell.rows if cell.kind == "decode" else 1
    keys = sum(min(context, w) if w else context for w in m.windows) * cell.rows
    return Cost(m.weight_bytes + seqs * kept * m.kv_row, _operations(m, cell.rows, cell.rows, keys))


def _prompt_keys(n: int, window: int) -> float:
    """Keys that the n rows of a prompt attend to in one layer, all together."""
    w = min(n, window) if window else n
    return w * (w + 1) / 2 + (n - w) * w


def _operations(m: Model, rows: int, wanted: int, keys: float) -> dict[str, float]:
    out: dict[str, float] = {m.attend_kind: m.attend * keys}
    for weights, n in ((m.body, rows), (m.head, wanted)):
        for kind, k in weights.items():
            out[kind] = out.get(kind, 0.0) + 2.0 * k * n
    return out
