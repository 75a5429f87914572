"""What was measured, in tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from pronghorn.bench.cells import Cell
from pronghorn.bench.engines import Memory, Start
from pronghorn.bench.record import OURS, Profile, Record, Result, Spread, spread
from pronghorn.cli import show


def tell(record: Record) -> None:
    """Print all there is of a record, which may have been cut short."""
    _machine(record)
    if record.starts:
        _starts(record)
    if record.loaded:
        _memory(record)
    for kind in ("prefill", "decode"):
        _cells(record, kind)
    _rows(record)
    for profile in record.profiles:
        _profile(profile)
    for name, why in record.failed.items():
        print(f"{name} is left out: {why}")
    said = {(name, why) for r in record.results for name, why in r.cannot.items()}
    for name, why in sorted(said):
        cells = ", ".join(r.cell.name for r in record.results if r.cannot.get(name) == why)
        print(f"{name} has no figure for {cells}: {why}")


def _machine(record: Record) -> None:
    limits = [s.limits for r in record.results for x in r.samples.values() for s in x]
    pairs = [(name, value) for name, value in record.machine.items() if value]
    pairs.append(("threads", str(record.threads)))
    if record.round_trip:
        pairs.append(("round trip", f"{record.round_trip * 1e9:.0f} ns for a cache line between two threads"))
    if limits:
        modes = " and ".join(sorted({x.mode for x in limits}))
        pairs.append(("memory", f"{_range([x.memory for x in limits])} GB/s by all threads ({modes} mode)"))
        pairs.append(("one thread", f"{_range([x.one for x in limits])} GB/s"))
        peaks = {k: sorted(x.peaks[k] for x in limits) for k in limits[0].peaks}
        pairs.append(("peaks", ", ".join(f"{k} {v[len(v) // 2] / 1e9:.0f} GOP/s" for k, v in peaks.items())))
    if record.costs:
        c = record.costs
        kinds = sorted({*c.body, *c.head})
        pairs.append(
            (
                "weights",
                f"{show.size(c.weight_bytes)} read in a step, {show.count(c.n_weights)} multiplied in "
                f"{', '.join(kinds)}",
            )
        )
    show.facts(f"{record.model}{' with ' + ', '.join(record.use) if record.use else ''}", pairs)


def _range(values: Sequence[float]) -> str:
    s = spread(values)
    return f"{s.median / 1e9:.1f} ({s.low / 1e9:.1f} to {s.high / 1e9:.1f})"


def _starts(record: Record) -> None:
    rows = [[name, how, *_start(s)] for name, of in record.starts.items() for how, s in of.items()]
    show.table(
        "Seconds from the start of the process", ["engine", "page cache", "it runs", "model loaded",
        "first token"], rows, right=(2, 3, 4),
    )  # fmt: skip


def _start(starts: Sequence[Start]) -> list[str]:
    def middle(values: list[float]) -> str:
        return f"{sorted(values)[len(values) // 2]:.2f}"

    return [middle([getattr(s, part) for s in starts]) for part in ("ready", "loaded", "first")]


def _memory(record: Record) -> None:
    rows = []
    for name, after in record.loaded.items():
        end = record.peak.get(name, Memory(0, 0, 0, 0))
        weights = record.costs.weight_bytes if record.costs and name == OURS else 0
        rows.append(
            [
                name, show.size(after.resident), show.size(after.private), show.size(after.file),
                f"{after.private / weights:.2f}" if weights else "",
                show.size(end.resident) if end.resident else "", show.size(max(after.peak, end.peak)),
            ]
        )  # fmt: skip
    show.table(
        "Memory", ["engine", "after loading", "its own", "mapped files", "own/weights", "at the end",
        "peak"], rows, right=(1, 2, 3, 4, 5, 6),
    )  # fmt: skip


def _cells(record: Record, kind: str) -> None:
    results = [r for r in record.results if r.cell.kind == kind and r.samples]
    if not results:
        return
    peers = [n for n in record.loaded if n != OURS]
    rows = []
    for r in results:
        row = [r.cell.name.removeprefix(kind + " ")]
        row += _own(r)
        row += [f"{r.read() / 1e9:.0f} {r.mode()}"]
        for name in peers:
            row += [f"{r.rate(name).median:.1f}" if r.samples.get(name) else "–"]
            row += [times(r.ratio(name)) if r.samples.get(name) and r.samples.get(OURS) else "–"]
        rows.append(row)
    heads = [kind, "tokens/s", "spread", "ms", "of limit", "GB/s"]
    heads += [h for name in peers for h in (name, "ours is")]
    show.table(kind.capitalize(), heads, rows, right=range(1, len(heads)))


def _own(r: Result) -> list[str]:
    if not r.samples.get(OURS):
        return ["–"] * 4
    rate, share = r.rate(OURS), r.share(OURS)
    return [
        f"{rate.median:.1f}", f"{rate.low:.1f} to {rate.high:.1f}",
        f"{r.seconds(OURS).median * 1e3:.2f}", f"{share.median:.0%} ({share.low:.0%} to {share.high:.0%})",
    ]  # fmt: skip


def _rows(record: Record) -> None:
    results = [r for r in record.results if r.cell.kind == "rows" and r.samples]
    one = next((r for r in results if r.cell.rows == 1), None)
    if not results:
        return
    peers = [n for n in record.loaded if n != OURS]
    rows = []
    for r in results:
        row = [str(r.cell.rows), *_own(r)[2:], f"{r.read() / 1e9:.0f} {r.mode()}"]
        for name in (OURS, *peers):
            there = r.samples.get(name) and one is not None and one.samples.get(name)
            row += [times(r.over(one, name)) if there and one is not None else "–"]
        rows.append(row)
    heads = ["rows", "ms", "of limit", "GB/s", "against one row", *peers]
    show.table("A step of n rows", heads, rows, right=range(len(heads)))


def _profile(p: Profile) -> None:
    rows = []
    for part, verdict in zip(p.parts, p.verdicts, strict=True):
        rows.append(
            [
                part.name, str(part.count), f"{part.time * 1e3:.3f}", f"{part.time / p.seconds:.0%}",
                f"{part.wait * 1e3:.3f}", f"{part.others * 1e3:.3f}",
                f"{verdict.limit * 1e3:.3f}" if verdict.limit else "", verdict.by, verdict.said,
            ]
        )  # fmt: skip
    took = f"{p.seconds * 1e3:.2f} ms at {p.limits.read / 1e9:.0f} GB/s"
    title = f"Where the time of {p.cell.name} goes: {took}"
    heads = ["part", "times", "ms", "share", "waiting", "others wait", "limit, ms", "set by", ""]
    show.table(title, heads, rows, right=(1, 2, 3, 4, 5, 6))


def times(s: Spread) -> str:
    return f"{s.median:.2f} x ({s.low:.2f} to {s.high:.2f})"


def summary(cell: Cell, r: Result) -> str:
    """One line about a cell, for a progress display."""
    return f"{cell.name}: {r.rate(OURS).median:.1f} tokens/s, {r.share(OURS).median:.0%} of the limit"
