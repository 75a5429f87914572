"""What KV methods keep, in tables: for a terminal, and for a page of the documentation."""

from __future__ import annotations

import math
import statistics

from pronghorn.bench.gains_report import NOTHING, markdown
from pronghorn.bench.kv import Record, Result, ordered
from pronghorn.bench.kv_methods import PLAIN
from pronghorn.cli import show


def tell(record: Record) -> None:
    """Print all there is of a record, which may have been cut short."""
    pairs = [(name, value) for name, value in record.machine.items() if value]
    pairs.append(("asked", f"{record.items} texts of {record.length} tokens with what is asked about them"))
    show.facts(record.model, pairs)
    heads = ["method", "budget", "score", "95 % interval", "held", "of plain", "read a step", "of plain"]
    for task in record.tasks:
        rows = [_row(record, r) for r in ordered([r for r in record.results if r.task == task])]
        show.table(title(record, task), heads, rows, right=range(2, len(heads)))
    for name, why in {**record.skipped, **record.failed}.items():
        print(f"{name} is left out: {why}")


def title(record: Record, task: str) -> str:
    one = record.find(task) or next(r for r in record.results if r.task == task)
    what = "perplexity" if one.perplexity else "right answers"
    return f"{task}: {what}, prompts of {one.rows:.0f} tokens"


def _row(record: Record, r: Result) -> list[str]:
    budget = f"1/{r.share}" if r.share else ""
    read = show.size(r.read) if r.read else NOTHING
    return [
        r.method, budget, figure(r), interval(r), show.size(r.bytes), times(record.held(r)), read,
        times(record.read(r)),
    ]  # fmt: skip


def figure(r: Result) -> str:
    return f"{r.figure:.3f}" if r.perplexity else f"{100 * r.figure:.1f} %"


def interval(r: Result) -> str:
    low, high = r.interval
    return f"{low:.3f} to {high:.3f}" if r.perplexity else f"{100 * low:.0f} to {100 * high:.0f}"


def times(x: float) -> str:
    return NOTHING if math.isnan(x) else f"{x:.3f}"


# ------------------------------------------------------------------------------- a page


def pages(record: Record) -> dict[str, str]:
    """Tables in Markdown by name: "plain", "1/2" and so on for the shares, "none" for methods without one."""
    out = {"plain": _plain(record)}
    for share in record.shares:
        names = [n for n in record.methods(share) if n != PLAIN]
        if names:
            out[f"1/{share}" if share else "none"] = _matrix(record, share, names)
    return out


def _plain(record: Record) -> str:
    """What the model answers without compression, and where and how all was measured."""
    rows = [
        [task, figure(r), interval(r), f"{r.rows:.0f}", show.size(r.bytes)]
        for task in record.tasks
        if (r := record.find(task))
    ]
    machine = ", ".join(
        f"{name} {value}" for name, value in record.machine.items() if value and name != "load"
    )
    parts = [
        f"{record.items} texts of {record.length} tokens with what is asked about them", record.date, machine,
        *(f"{name} is left out: {why}" for name, why in {**record.skipped, **record.failed}.items()),
    ]  # fmt: skip
    table = markdown(["task", "score", "95 % interval", "prompt", "held"], rows)
    return f"{table}\n\n_{'; '.join(p for p in parts if p)}._"


def _matrix(record: Record, share: int, names: list[str]) -> str:
    """Methods down, the best first by the mean of their scores; tasks across, and bytes against plain's."""
    scored = [t for t in record.tasks if (r := record.find(t)) and not r.perplexity]

    def mean(name: str) -> float:
        found = [r.figure for t in scored if (r := record.find(t, name, share))]
        return statistics.fmean(found) if found else 0.0

    rows = []
    for name in sorted(names, key=lambda n: (-mean(n), n)):
        of = [record.find(task, name, share) for task in record.tasks]
        there = [r for r in of if r]
        brief = [r for r in there if not r.perplexity]
        rows.append(
            [name, *(_short(r) if r else NOTHING for r in of), f"{100 * mean(name):.0f}",
             _mean([record.held(r) for r in brief]), _mean([record.read(r) for r in brief])]
        )  # fmt: skip
    return markdown(["method", *record.tasks, "mean", "held", "read"], rows)


def _short(r: Result) -> str:
    low, high = r.interval
    if r.perplexity:
        return f"{r.figure:.3f}"
    return f"{100 * r.figure:.0f} ({100 * low:.0f}–{100 * high:.0f})"


def _mean(found: list[float]) -> str:
    return times(statistics.fmean(found)) if found else NOTHING
