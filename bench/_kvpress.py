"""Our policies and NVIDIA's kvpress on the same tasks of the look-up model, at equal budgets."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _report import table

from pronghorn.bench.engines import Launch, Process
from pronghorn.bench.kv import wilson
from pronghorn.bench.kv_compare import graded
from pronghorn.bench.kv_methods import PLAIN, Entry
from pronghorn.bench.kv_run import Heard, Reading, hold
from pronghorn.bench.kv_tasks import Talk, Task, make
from pronghorn.bench.ours import PLAIN as WITHOUT
from pronghorn.bench.peers import environments
from pronghorn.compose import names, parse
from pronghorn.llm import LLM

DRIVER = Path(__file__).resolve().parent / "peers" / "kvpress_driver.py"
PRESSES = {
    PLAIN: "",
    "snapkv": "SnapKVPress",
    "adakv": "AdaKVPress",
    "pyramidkv": "PyramidKVPress",
    "tova": "TOVAPress",
    "h2o": "ObservedAttentionPress",
    "knorm": "KnormPress",
    "expected-attention": "ExpectedAttentionPress",
    "streaming-llm": "StreamingLLMPress",
    "random": "RandomPress",
}
KINDS = ("kv", "kv-requests")
SHARES = (8, 4)


@dataclass(frozen=True)
class Pair:
    """One method of ours and one of theirs: what share of `items` each answers, and the bytes it holds."""

    task: str
    method: str
    press: str
    share: int
    items: int
    ours: float
    theirs: float
    held: float
    held_theirs: float


def options(method: str, use: Sequence[str]) -> dict[str, Any]:
    """A press's, like those of our method."""
    if method == PLAIN:
        return {}
    of = parse(use[0])[1]
    inner = parse(f"kv.{of.policy}")[1] if hasattr(of, "policy") else of
    window = {"window_size": inner.window, "kernel_size": inner.kernel} if hasattr(inner, "kernel") else {}
    if method == "pyramidkv":
        return {**window, "beta": int(of.ratio)}
    if method == "adakv":
        return {**window, "press": "SnapKVPress"}
    if method == "expected-attention":
        return {"n_sink": of.sinks, "n_future_positions": of.future, "use_covariance": of.covariance}
    if method == "streaming-llm":
        return {"n_sink": of.sinks}
    return window


def compare(model: str, length: int, items: int, file: Path) -> str:
    """The table. What the file has is not measured again. "" where kvpress is not installed."""
    pairs = [Pair(**p) for p in json.loads(file.read_text())] if file.exists() else []
    python = environments() / "kvpress" / "bin" / "python"
    if python.exists():
        peer = Process(Launch("kvpress", str(python), DRIVER, model, (), "bf16", 1, file.parent))
        try:
            version = peer.load()[0]["version"]
            _measure(peer, model, length, items, pairs, file)
        finally:
            peer.close()
        file.with_suffix(".version").write_text(version)
    return f"{page(pairs)}\n\n_kvpress {file.with_suffix('.version').read_text()}_" if pairs else ""


def _measure(peer: Process, model: str, length: int, items: int, pairs: list[Pair], file: Path) -> None:
    llm = LLM(model, threads=1, defaults=WITHOUT)
    tasks = {kind: make(kind, llm.tokenizer, length, items, Path()) for kind in KINDS}
    llm.close()
    todo = [(PLAIN, 0), *((m, share) for share in SHARES for m in PRESSES if m in names()["kv"])]
    for method, share in todo:
        if any((p.method, p.share) == (method, share) for p in pairs):
            continue
        made: list[Pair] = []
        for task in tasks.values():
            made += _pairs(peer, model, task, method, PRESSES[method], share)
        pairs += made
        file.write_text(json.dumps([asdict(p) for p in pairs]))
        print(method, share, *(f"{p.task} {p.ours:.2f} {p.theirs:.2f}" for p in made), flush=True)


def _pairs(peer: Process, model: str, task: Task, method: str, press: str, share: int) -> list[Pair]:
    use = Entry(method, share).use(task.rows)
    talks = [t for item in task.items for t in item]
    llm = LLM(model, list(use), threads=1, defaults=WITHOUT)
    try:
        ours = hold(llm, talks, Reading())
        keep = task.rows // share if share else 1 << 30
        theirs = [_asked(peer, press, options(method, use), keep, t) for t in talks]
        both = [graded(llm.tokenizer, task, heard) for heard in (ours, theirs)]
    finally:
        llm.close()
    held = [statistics.fmean(h.held for h in heard) for heard in (ours, theirs)]
    return [
        Pair(
            name, method, press, share, len(task.items), statistics.fmean(both[0][name]),
            statistics.fmean(both[1][name]), held[0], held[1],
        )
        for name in both[0]
    ]  # fmt: skip


def _asked(peer: Process, press: str, given: dict[str, Any], keep: int, talk: Talk) -> Heard:
    said = peer.ask(
        "talk", press=press, options=given, keep=keep, ids=list(talk.ids),
        asks=[list(t.ask) for t in talk.turns], limits=[t.limit for t in talk.turns], end=talk.end,
    )  # fmt: skip
    return Heard(said["answers"], held=said["held"])


def page(pairs: Sequence[Pair]) -> str:
    rows = []
    for p in pairs:
        both = [f"{100 * x:.0f} ({_interval(x, p.items)})" for x in (p.ours, p.theirs)]
        rows.append(
            [p.task, p.method, p.press or "none", f"1/{p.share}" if p.share else "", *both, _verdict(p),
             f"{p.held / 1024:.0f} KiB", f"{p.held_theirs / 1024:.0f} KiB"]
        )  # fmt: skip
    heads = [
        "task",
        "ours",
        "kvpress",
        "budget",
        "right, ours",
        "kvpress",
        "ours is",
        "held, ours",
        "kvpress",
    ]
    return table(heads, rows)


def _interval(x: float, n: int) -> str:
    low, high = wilson(x * n, n)
    return f"{100 * low:.0f}–{100 * high:.0f}"


def _verdict(p: Pair) -> str:
    """Better or worse where neither figure lies within the other's interval."""
    inside = [
        low <= y <= high
        for x, y in ((p.ours, p.theirs), (p.theirs, p.ours))
        for low, high in [wilson(x * p.items, p.items)]
    ]
    return "as good" if any(inside) else "better" if p.ours > p.theirs else "worse"
