"""What drafting gains, in tables: for a terminal, and for a page of the documentation.

Speeds are times plain decoding of the same engine, round by round: the middle one, and the extremes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pronghorn.bench.gains import PLAIN, Record, Result, together
from pronghorn.bench.record import Spread
from pronghorn.cli import show

NOTHING = "–"


def tell(record: Record) -> None:
    """Print all there is of a record, which may have been cut short."""
    pairs = [(name, value) for name, value in record.machine.items() if value]
    pairs += [
        ("threads", str(record.threads)),
        ("asked", f"{record.rounds} rounds of {record.prompts} prompts, {record.tokens} tokens at most"),
    ]
    pairs += list(record.peers.items())
    show.facts(f"{record.model}{' with ' + ', '.join(record.use) if record.use else ''}", pairs)
    for (batch, temperature), results in record.cells().items():
        rows = [line for r in _with_all(results) for line in _long(record, r)]
        heads = [
            "category", "drafter", "tokens a step", "draft rows a token", "speed of plain", "with prompts",
            "tokens/s",
        ]  # fmt: skip
        title = f"Batch {batch}, temperature {temperature:g}"
        show.table(title, heads, rows, right=range(2, len(heads)))
        if record.peers:
            heads = _peer_heads(record)
            show.table(
                f"Peers, batch {batch}, temperature {temperature:g}", heads, _peer_rows(record, results)
            )
    for name, why in {**record.skipped, **record.failed}.items():
        print(f"{name} is left out: {why}")
    for r in record.results:
        for name, why in r.cannot.items():
            print(f"{name} has no figure for {r.category} at batch {r.batch}: {why}")


def _with_all(results: Sequence[Result]) -> list[Result]:
    return [*results, together(results)] if len(results) > 1 else list(results)


def _long(record: Record, r: Result) -> list[list[str]]:
    rows = []
    for name in record.ours(r):
        promise = record.drafters.get(name, "exact")
        shown = name if promise == "exact" else f"{name} ({promise})"
        speed = "1" if name == PLAIN else spoken(r.ratio(name))
        whole = "1" if name == PLAIN else f"{r.whole(name).median:.2f}"
        rows.append(
            [
                r.category, shown, f"{r.length(name):.2f}", f"{r.rows(name):.2f}", speed, whole,
                f"{r.rate(name).median:.0f}",
            ]
        )  # fmt: skip
    return rows


def spoken(s: Spread) -> str:
    return f"{s.median:.2f} ({s.low:.2f} to {s.high:.2f})"


# ------------------------------------------------------------------------------- peers


def _ways(record: Record) -> dict[str, list[str]]:
    """Peers, and their contestants: without drafts first."""
    out: dict[str, list[str]] = {}
    for name in record.peers:
        out.setdefault(name.partition(" ")[0], []).append(name)
    return out


def _peer_heads(record: Record) -> list[str]:
    heads = ["category", "pronghorn plain", "drafter", "tokens/s"]
    for peer, names in _ways(record).items():
        heads += [n if n != peer else f"{peer} plain" for n in names] + [f"ours against {peer}"]
    return heads


def _peer_rows(record: Record, results: Sequence[Result]) -> list[list[str]]:
    """Tokens a second. Ours is `auto` where it ran, else the fastest drafter of the category; against it
    stands the peer's fastest way in that category."""
    rows = []
    for r in _with_all([r for r in results if any(r.samples.get(n) for n in record.peers)]):
        best = record.auto(r) or record.best(r)
        row = [r.category, f"{r.rate(PLAIN).median:.0f}", best, f"{r.rate(best).median:.0f}"]
        for names in _ways(record).values():
            row += [f"{r.rate(n).median:.0f}" if r.samples.get(n) else NOTHING for n in names]
            there = [n for n in names if r.samples.get(n)]
            fastest = max(there, key=lambda n: r.rate(n).median, default="")
            row.append(spoken(r.ratio(best, fastest)) if fastest else NOTHING)
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------- a page


def pages(record: Record) -> dict[str, str]:
    """Tables in Markdown by name: "speed", "steps", and "peers" where there are any."""
    cells = record.cells()
    speed, steps, peers = [], [], []
    for (batch, temperature), results in cells.items():
        title = f"Batch {batch}, temperature {temperature:g}:"
        speed.append(f"{title}\n\n{_matrix(record, results, _speed, True)}")
        if batch == min(b for b, _ in cells):
            steps.append(f"{title}\n\n{_matrix(record, results, _steps, False)}")
        if record.peers:
            peers.append(f"{title}\n\n{markdown(_peer_heads(record), _peer_rows(record, results))}")
    out = {"speed": "\n\n".join([*speed, _where(record)]), "steps": "\n\n".join(steps)}
    if peers:
        out["peers"] = "\n\n".join(peers)
    return out


def _matrix(
    record: Record, results: Sequence[Result], figure: Callable[[Result, str], str], speed: bool
) -> str:
    """Drafters down, categories across; of speeds also the slowest counted round of any category, and what
    the drafter that chooses reaches of the best single one."""
    every = _with_all(results)
    rows = []
    for name in [n for n in record.drafters if any(r.samples.get(n) for r in results)]:
        there = [r for r in results if r.samples.get(name)]
        row = [name, *(figure(r, name) if r.samples.get(name) else NOTHING for r in every)]
        rows.append([*row, f"{min(r.ratio(name).low for r in there):.2f}"] if speed else row)
    if speed and len(record.drafters) > 1 and all(record.auto(r) for r in every):
        shares = [r.ratio(record.auto(r), record.best(r)).median for r in every]
        rows.append(["auto over the best", *(f"{x:.2f}" for x in shares), f"{min(shares):.2f}"])
    heads = ["drafter", *(r.category for r in every)]
    return markdown([*heads, "slowest round"] if speed else heads, rows)


def _speed(r: Result, name: str) -> str:
    return f"{r.ratio(name).median:.2f}"


def _steps(r: Result, name: str) -> str:
    return f"{r.length(name):.2f} / {r.rows(name):.1f}"


def _where(record: Record) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in record.machine.items() if value)
    parts = [
        record.model + (" with " + ", ".join(record.use) if record.use else ""),
        f"{record.rounds} rounds of {record.prompts} prompts, {record.tokens} new tokens at most",
        f"{record.threads} threads, {record.date}", machine,
        *(f"{name}: {version}" for name, version in record.peers.items() if " " not in name),
        *(f"{name} is left out: {why}" for name, why in {**record.skipped, **record.failed}.items()),
    ]  # fmt: skip
    return "_" + "; ".join(parts) + "._"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    wide = [max(len(r[i]) for r in (heads, *rows)) for i in range(len(heads))]
    lines = [
        "| " + " | ".join(x.ljust(w) for x, w in zip(r, wide, strict=True)) + " |" for r in (heads, *rows)
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in wide) + "|")
    return "\n".join(lines)
