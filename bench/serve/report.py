"""Tables of what was measured, in Markdown, and where they go in docs/serving.md.

The page is written by hand around them: between a line `<!-- table: NAME -->` and a line `<!-- end -->` the
table of that name is put. Where rounds were repeated, a figure is the middle one of the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from _report import said, table
from figures import LOOSE, TIGHT, Solo, goodput, percentile, share

Record = dict[str, Any]
OURS = "pronghorn"


def page(records: Sequence[Record]) -> str:
    """Every table, each under its name."""
    parts = []
    for name, rows in tables(records).items():
        parts.append(f"<!-- table: {name} -->\n{rows}\n<!-- end -->\n")
    return "\n".join(parts)


def tables(records: Sequence[Record]) -> dict[str, str]:
    """By name: the kind, then the model, and the trace for a sweep."""
    out: dict[str, str] = {}
    for r in records:
        trace = f" {r['trace']}" if "trace" in r else ""
        out[f"{r['kind']}{trace} {r['model']} {r['precision']}"] = f"\n{KINDS[r['kind']](r)}\n\n{_where(r)}\n"
    return out


def _where(r: Record) -> str:
    limits = [x["memory"] for run in r.get("runs", []) for x in run.get("limits", [])]
    parts = [f"{r['model']}, {r['precision']}, {r['threads']} threads, {r['date']}", said(r["machine"])]
    if limits:
        parts.append(
            f"memory {median(limits) / 1e9:.1f} GB/s ({min(limits) / 1e9:.1f} to {max(limits) / 1e9:.1f}) "
            "beside the runs"
        )
    cpu = [run["client_cpu"] for run in r.get("runs", []) if "client_cpu" in run]
    if cpu:
        parts.append(f"the load generator took {100 * max(cpu):.0f} % of a core at most")
    if r["versions"]:
        parts.append("; ".join(f"{k}: {v}" for k, v in r["versions"].items()))
    if r["use"]:
        parts.append("ours with " + ", ".join(r["use"]))
    return "_" + "; ".join(parts) + "._"


# ------------------------------------------------------------------------------- kinds


def sweep(r: Record) -> str:
    tight, loose = Solo(**r["solo"]).targets()
    rows = []
    best: dict[str, list[tuple[float, float]]] = {}
    for rate in r["rates"]:
        for who in r["alone"]:
            runs = [x for x in r["runs"] if x["engine"] == who and x["rate"] == rate]
            if not runs:
                continue
            good = [median(goodput(x, t) for x in runs) for t in (tight, loose)]
            for i, g in enumerate(good):
                best.setdefault(who, [(0.0, 0.0), (0.0, 0.0)])
                best[who][i] = max(best[who][i], (g, rate))
            rows.append(
                [
                    f"{rate:.2f}", who, _middle(runs, "tokens_per_second"),
                    *(_ms(runs, part, q) for part in ("ttft", "gap") for q in ("p50", "p99")),
                    *(f"{g:.2f} ({100 * median(share(x, t) for x in runs):.0f} %)"
                      for g, t in zip(good, (tight, loose), strict=True)),
                    _failed(runs),
                ]
            )  # fmt: skip
    heads = [
        "requests/s", "engine", "tokens/s", "first p50", "first p99", "between p50", "between p99",
        "good/s, tight", "good/s, loose", "failed",
    ]  # fmt: skip
    total = [
        [who, *(f"{g:.2f} at {rate:.2f}" for g, rate in x), *_against(best, who)] for who, x in best.items()
    ]
    ratio = table(["engine", "best goodput, tight", "best goodput, loose", "ours: tight", "loose"], total)
    solo = r["solo"]
    return (
        f"{r['requests']} requests of {r['trace']}, lengths times {r['factor']:.3f}. Alone the fastest "
        f"engine gives the first token of a prompt of {r['long']} after {solo['ttft'] * 1000:.0f} ms, "
        f"further ones every {solo['pace'] * 1000:.1f} ms. A request is good that has its first token "
        f"within {TIGHT} (tight) or {LOOSE} (loose) times that, and as many times the time between tokens on "
        "average.\n\n"
        f"{table(heads, rows)}\n\n{ratio}"
    )


def _against(best: dict[str, list[tuple[float, float]]], who: str) -> list[str]:
    if OURS not in best:
        return ["", ""]
    return [f"{best[OURS][i][0] / best[who][i][0]:.2f} times" if best[who][i][0] else "" for i in (0, 1)]


def stall(r: Record) -> str:
    rows = []
    for who, runs in _engines(r):
        rows.append(
            [
                who, *(_of(runs, when, q) for when in ("before", "during") for q in ("p50", "p99", "max")),
                f"{median(x['ttft'] for x in runs):.2f} s", f"{median(x['alone'] for x in runs):.2f} s",
            ]
        )  # fmt: skip
    heads = [
        "engine", "before: p50", "p99", "max", "during: p50", "p99", "max", "long one's first token",
        "alone",
    ]  # fmt: skip
    return (
        f"Time between tokens of {r['streams']} streams, in ms, before a prompt of {r['long']} tokens comes "
        f"and until its first token.\n\n{table(heads, rows)}"
    )


def prefix(r: Record) -> str:
    rows, alone = [], {}
    for n in sorted({x["endings"] for x in r["runs"]}):
        for who, runs in _engines({"runs": [x for x in r["runs"] if x["endings"] == n]}):
            rate = median(x["tokens_per_second"] for x in runs)
            alone[n, who] = rate
            read, steps = (
                median(x["counted"].get(name, 0.0) for x in runs)
                for name in ("pronghorn_kv_read_bytes_total", "pronghorn_steps_total")
            )
            rows.append(
                [
                    str(n), who, f"{rate:.0f}", "",
                    _ms(runs, "ttft", "p50"), _ms(runs, "ttft", "p99"),
                    f"{read / steps / 1e6:.1f} MB" if read and steps else "",
                ]
            )  # fmt: skip
    for row in rows:
        rate = alone[int(row[0]), row[1]]
        other = alone.get((int(row[0]), "not shared"))
        row[3] = f"{rate / other:.2f}" if other else ""
    heads = ["requests", "engine", "tokens/s", "times not shared", "first p50", "first p99", "KV read a step"]
    return (
        f"{r['prefix']} tokens at the beginning, {r['suffix']} of each request's own, {r['new']} new ones; "
        f"all sent at once, nothing stored before.\n\n{table(heads, rows)}"
    )


def fair(r: Record) -> str:
    rows = []
    for who, runs in _engines(r):
        alone, beside = ([s for x in runs for s in x[k]] for k in ("alone", "beside"))
        a, b = percentile(alone, 95), percentile(beside, 95)
        rows.append(
            [who, f"{a:.2f} s", f"{b:.2f} s", f"{b / a:.2f}", f"{median(x['heavy'] for x in runs):.1f} s",
             str(sum(len(x["errors"]) for x in runs))]
        )  # fmt: skip
    heads = ["engine", "p95 alone", "p95 beside", "times", "the heavy user's last", "failed"]
    return f"{r['few']} short requests, alone and beside {r['many']} long ones of another user.\n\n" + table(
        heads, rows
    )


def cold(r: Record) -> str:
    rows = []
    for who, runs in _engines(r):
        warm = [x for x in runs if not x["cold"]] or runs
        first = [x["first"] for x in warm]
        from_disk = [x["first"] for x in runs if x["cold"]]
        rows.append(
            [
                who, f"{median(x['ready'] for x in warm):.2f} s",
                f"{median(first):.2f} s ({min(first):.2f} to {max(first):.2f})",
                f"{from_disk[0]:.2f} s" if from_disk else "", f"{runs[-1]['resident'] >> 20} MiB",
            ]
        )  # fmt: skip
    return table(["engine", "ready", "first token", "first time, files not cached", "resident"], rows)


def soak(r: Record) -> str:
    series = r["series"]
    middle = series[len(series) // 2]
    rows = [
        [
            r["engine"], f"{r['minutes']:g}", str(r["whole"]), str(r["left"]), str(r["errors"]),
            *(f"{s['resident'] >> 20}" for s in (series[0], middle, series[-1])),
            f"{r['grows'] * 3600 / (1 << 20):+.1f}",
        ]
    ]  # fmt: skip
    heads = [
        "engine", "minutes", "whole", "clients that left", "failed", "MiB at first", "half-way", "at the end",
        "MiB an hour, second half",
    ]  # fmt: skip
    return table(heads, rows)


def churn(r: Record) -> str:
    held = r.get("kv", {}).get("held", "")
    rows = [
        [
            r["engine"], str(r["clients"]), str(r["whole"]), str(r["left"]), str(sum(r["errors"].values())),
            f"{r.get('running', '')} / {r.get('waiting', '')}", f"{held} / {r.get('stored', '')}",
            f"{r['open'][0]} / {r['open'][1]}", "yes" if r["answers"] else "no",
        ]
    ]  # fmt: skip
    heads = [
        "engine", "clients", "whole", "left", "failed", "then running / waiting", "KV bytes held / stored",
        "open files before / after", "still answers",
    ]  # fmt: skip
    return table(heads, rows)


KINDS: dict[str, Callable[[Record], str]] = {
    "sweep": sweep, "stall": stall, "prefix": prefix, "fair": fair, "cold": cold, "soak": soak,
    "churn": churn,
}  # fmt: skip


# ------------------------------------------------------------------------------- cells


def _engines(r: Record) -> list[tuple[str, list[Record]]]:
    names = dict.fromkeys(x["engine"] for x in r["runs"])
    return [(who, [x for x in r["runs"] if x["engine"] == who]) for who in names]


def _middle(runs: Sequence[Record], name: str) -> str:
    return f"{median(x[name] for x in runs):.0f}"


def _ms(runs: Sequence[Record], part: str, q: str) -> str:
    return f"{median(x[part][q] for x in runs) * 1000:.0f} ms"


def _of(runs: Sequence[Record], when: str, q: str) -> str:
    return f"{median(x[when][q] for x in runs) * 1000:.0f}"


def _failed(runs: Sequence[Record]) -> str:
    return str(sum(x["sent"] - x["whole"] for x in runs) + sum(x["short"] for x in runs))
