"""Where the time of a step goes: parts of the plan that are alike in all layers together, each against the
shortest time that its bytes and operations allow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pronghorn.bench.cost import Model, arithmetic

if TYPE_CHECKING:
    from pronghorn.bench.cells import Cell
    from pronghorn.bench.limits import Limits
    from pronghorn.engine import Engine

GOOD = 0.8  # of the limit: closer is near enough
SMALL = 0.03  # of a step: less is not worth a word
AROUND = "engine and Python"
BEFORE = "angles"
MULTIPLY = {"linear", "gated", "head", "moe"}  # ops whose matrices a step reads whole


@dataclass
class Part:
    """Of one step, seconds and counts. time: of the thread that calls; wait: what it waited for others of
    that; others: mean wait of the other threads; matrices: kind of arithmetic -> weights; n_bytes: of
    weights."""

    name: str
    count: int = 0
    time: float = 0.0
    wait: float = 0.0
    others: float = 0.0
    n_bytes: float = 0.0
    matrices: dict[str, float] | None = None
    attends: bool = False
    is_head: bool = False


def parts_of(
    engine: Engine, threads: Sequence[Sequence[Sequence[int]]], seconds: float, steps: int
) -> list[Part]:
    """Parts by name, the longest first. threads: what `stop_profile` gave; seconds: a step took."""
    runner: Any = engine.runner
    number = {v: k for k, v in runner._mats.items()}
    named: dict[str, Part] = {}
    for i, (ops, mats) in enumerate([([BEFORE], []), *runner.exe.portions()]):
        keys = [number[m] for m in mats if MULTIPLY & set(ops)]
        part = named.setdefault(_name(ops, keys), Part("", matrices={}))
        part.name = _name(ops, keys)
        part.count += 1
        part.time += threads[0][i][0] / 1e9 / steps
        part.wait += threads[0][i][1] / 1e9 / steps
        part.others += sum(t[i][1] for t in threads[1:]) / max(1, len(threads) - 1) / 1e9 / steps
        part.attends |= "attend" in ops
        part.is_head |= "head" in ops
        for key in keys:
            packed = engine.bound.mats.form(key)
            kind = arithmetic(packed)
            assert part.matrices is not None
            part.matrices[kind] = part.matrices.get(kind, 0) + packed.shape[0] * packed.shape[1]
            part.n_bytes += packed.nbytes
    inside = sum(p.time for p in named.values())
    named[AROUND] = Part(AROUND, 1, max(0.0, seconds - inside), matrices={})
    return sorted((p for p in named.values() if p.time > 0), key=lambda p: -p.time)


def _name(ops: Sequence[str], keys: Sequence[str]) -> str:
    """Ops in words, and the matrices without the number of their layer."""
    what = ", ".join(dict.fromkeys(ops))
    short = [re.sub(r"^(model\.)?(layers\.\d+\.)?|\.weight$", "", k) for k in keys]
    leaves = dict.fromkeys(re.sub(r"^(self_attn|mlp)\.|_proj$", "", s) for s in short)
    return f"{what}: {', '.join(leaves)}" if leaves else what


@dataclass(frozen=True)
class Verdict:
    """Of a part: its limit in seconds (0 where there is none), what sets it, and what there is to say."""

    limit: float
    by: str
    said: str


def judge(part: Part, cell: Cell, m: Model, limits: Limits, step: float) -> Verdict:
    """step: seconds of the whole step."""
    rows = 1 if part.is_head and cell.kind == "prefill" else cell.rows
    operations = {kind: 2.0 * n * rows for kind, n in (part.matrices or {}).items()}
    n_bytes = part.n_bytes
    if part.attends:
        seqs = cell.rows if cell.kind == "decode" else 1
        context = cell.context or cell.rows / 2
        keys = sum(min(context, w) if w else context for w in m.windows)
        operations = {m.attend_kind: m.attend * keys * cell.rows}
        n_bytes = seqs * keys / max(1, len(m.windows)) * m.kv_row
    memory = n_bytes / limits.read
    work = sum(n / limits.peak(kind) for kind, n in operations.items())
    limit = max(memory, work)
    by = "" if not limit else "memory" if memory >= work else "arithmetic"
    if part.time < SMALL * step:
        return Verdict(limit, by, "")
    if not limit:
        return Verdict(limit, by, "no limit of its own: overhead")
    if limit >= GOOD * part.time:
        return Verdict(limit, by, "near its limit")
    waits = ", mostly waiting" if part.wait > part.time / 2 else ""
    return Verdict(limit, by, f"off its limit by {(part.time - limit) * 1e3:.2f} ms{waits}")
