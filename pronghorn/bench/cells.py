"""What is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pronghorn.errors import RequestError

KINDS = ("start", "prefill", "decode", "rows")
PREFILL = (128, 512, 2048, 8192)
BATCH = (1, 2, 4, 8, 16, 32)
CONTEXT = (128, 2048, 8192)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
QUICK_PREFILL, QUICK_BATCH, QUICK_CONTEXT, QUICK_ROWS = (128, 512), (1, 8), (128, 2048), (1, 4, 8, 16)


@dataclass(frozen=True)
class Cell:
    """kind "prefill": a prompt of `rows` tokens, up to the first new one. "decode": one token for each of
    `rows` sequences whose context holds `context` tokens. "rows": one step of `rows` rows of one sequence
    behind `context` tokens, the logits of every row wanted, as when a draft is checked."""

    kind: str
    rows: int
    context: int = 0

    @property
    def name(self) -> str:
        if self.kind == "prefill":
            return f"prefill {self.rows}"
        if self.kind == "decode":
            return f"decode batch {self.rows}, context {self.context}"
        return f"step of {self.rows} rows"

    def fits(self, context: int) -> bool:
        """Whether a model of this context can run it, steps of decoding included."""
        return self.context + self.rows < context if self.kind != "decode" else self.context + 80 < context

    @property
    def tokens(self) -> int:
        """That a run of the cell brings forward."""
        return self.rows


def profiled() -> list[Cell]:
    """Cells whose time is attributed."""
    return [Cell("decode", 1, CONTEXT[0]), Cell("decode", 8, CONTEXT[0]), Cell("prefill", 512)]


def plan(quick: bool, only: Sequence[str]) -> list[Cell]:
    """Cells in the order in which they are measured. only: kinds, all where empty. Raises
    `RequestError`."""
    wrong = [k for k in only if k not in KINDS]
    if wrong:
        raise RequestError(f"no cells called {wrong[0]!r}; known: {', '.join(KINDS)}")
    base = CONTEXT[0]
    cells = [Cell("rows", n, base) for n in (QUICK_ROWS if quick else ROWS)]
    cells += [Cell("decode", n, base) for n in (QUICK_BATCH if quick else BATCH)]
    cells += [Cell("decode", 1, c) for c in (QUICK_CONTEXT if quick else CONTEXT)[1:]]
    cells += [Cell("prefill", n) for n in (QUICK_PREFILL if quick else PREFILL)]
    return [c for c in cells if not only or c.kind in only]
