"""What the KV methods save and what they cost: bytes, speed and look-ups that still succeed.

    python bench/kv.py [--part cost|quality|all] [--items 100] [--rounds 9] [--threads N] [--json]

**Cost** is measured on a random model of the shape of a small real one (8 layers, width 896, 14 heads, 2 KV
heads of 64, bfloat16, nothing downloaded), at 1,000 and 4,000 prompt tokens; methods keep or read a quarter
of the rows. *held*: pages, positions and tables of the sequence after the prompt, from the store. *peak*:
the most that the arenas reserved until then. *speed*: decoding against the plain path; all decode in turn
in one run, `--block` tokens at a time, the ratio is taken within each round. What the methods decide means
nothing on random weights; what they cost does.

**Quality** is measured on the bundled model: a number hidden in a text (budget 64 rows of about 370), and a
registry of ten entries (budget 40 of about 100). *1st*: the question ends the prompt. *2nd*: another question
follows in the same conversation, over the rows that were kept for the first. *by lot* is the control: the
last 8 rows and others by lot, as many in all; a policy that does no better has chosen nothing. Intervals are
Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _report import Spread, machine, said, spread, table
from _tasks import Task, needle, registry

from pronghorn.compose import compose
from pronghorn.kv.view import KVView
from pronghorn.llm import BUNDLED, LLM, make_engine
from pronghorn.model.tokenizer import Tokenizer, load_tokenizer
from pronghorn.nulls import EXACT
from pronghorn.seq import Request
from pronghorn.types import FOREVER, Guarantee, KVPlan, Traits

WINDOW = 8  # rows at the end of a prompt that snapkv and the control always keep: most of the question


# ------------------------------------------------------------------------------- cost

SHAPE = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 896, "intermediate_size": 2432,
    "num_hidden_layers": 8, "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Bytes and speed of one method at one length of prompt; plain: of the plain path."""

    n_prompt: int
    method: str
    held: int
    held_plain: int
    peak: int
    peak_plain: int
    speed: Spread  # times plain
    tokens_per_second: float


def cost_methods(n: int) -> dict[str, tuple[str, ...]]:
    """A quarter of n rows where a method has a budget."""
    q = n // 4
    return {
        "plain": (),
        f"snapkv:budget={q}": (f"snapkv:budget={q}",),
        f"h2o:budget={q}": (f"h2o:budget={q}",),
        f"tova:budget={q}": (f"tova:budget={q}",),
        f"d2o:budget={q}": (f"d2o:budget={q}",),
        f"scissorhands:budget={q}": (f"scissorhands:budget={q}",),
        f"keyformer:budget={q}": (f"keyformer:budget={q}",),
        f"critic:budget={q}": (f"critic:budget={q}",),
        f"expected-attention:budget={q}": (f"expected-attention:budget={q}",),
        f"kvzip:budget={q}": (f"kvzip:budget={q}",),
        f"knorm:budget={q}": (f"knorm:budget={q}",),
        f"random:budget={q}": (f"random:budget={q}",),
        f"adakv of snapkv:budget={q}": (f"adakv:policy='snapkv:budget={q}'",),
        f"pyramidkv of snapkv:budget={q}": (f"pyramidkv:policy='snapkv:budget={q}'",),
        f"razor-attention:window={q - 5}": (f"razor-attention:window={q - 5}",),
        f"streaming-llm:window={q - 4}": (f"streaming-llm:window={q - 4}",),
        "kvfmt.int8": ("kvfmt.int8",),
        f"quest:tokens={q}": (f"quest:tokens={q}",),
        f"snapkv:budget={q} + kvfmt.int8": (f"snapkv:budget={q}", "kvfmt.int8"),
    }


def random_weights() -> tuple[Any, dict[str, Any]]:
    import ml_dtypes

    from pronghorn.model.arch import build_tape

    tape = build_tape(SHAPE)
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in tape.expected().items():
        w = rng.standard_normal(shape, np.float32) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
        tensors[name] = (w + (1 if len(shape) == 1 else 0)).astype(ml_dtypes.bfloat16)
    return tape, tensors


class Contestant:
    """An engine with one sequence under way."""

    def __init__(self, model: tuple[Any, Any], use: Sequence[str], ids: Sequence[int], threads: int) -> None:
        from pronghorn.model.checkpoint import Checkpoint, Tensors

        tape, tensors = model
        checkpoint = Checkpoint(Path("random"), "hf", {}, Tensors.of(tensors), (), -1)
        tokenizer = load_tokenizer(BUNDLED / "pronghorn-tiny", {})
        made = compose(("match", *use))
        self.engine = make_engine(checkpoint, tape, made, tokenizer, "native", threads, 1 << 31)
        self.peak = 0
        for arena in (self.engine.store.open_arena, self.engine.store.sealed_arena):
            self._watch(arena)
        (self.seq,) = self.engine.submit(Request(tuple(ids), 8192, ignore_eos=True))
        while self.seq.kv.length < len(ids):
            self.engine.step()
        self.held = self.engine.store.bytes_of(self.seq.kv)
        self.at_prompt = self.peak

    def _watch(self, arena: Any) -> None:
        alloc = arena.alloc

        def watched(n: int) -> Any:
            out = alloc(n)
            self.peak = max(self.peak, self.engine.store.reserved)
            return out

        arena.alloc = watched

    def decode(self, n: int) -> float:
        """Tokens per second over n tokens."""
        start, first = time.perf_counter(), self.seq.n_new
        while self.seq.n_new < first + n:
            self.engine.step()
        return n / (time.perf_counter() - start)


def cost(n_prompt: int, rounds: int, block: int, threads: int) -> list[Cost]:
    model = random_weights()
    ids = np.random.default_rng(1).integers(3, SHAPE["vocab_size"], n_prompt).tolist()
    all_ = {name: Contestant(model, use, ids, threads) for name, use in cost_methods(n_prompt).items()}
    rates: dict[str, list[float]] = {name: [] for name in all_}
    for i in range(rounds + 1):
        for name, c in all_.items():
            rate = c.decode(block)
            if i:  # the first round warms up
                rates[name].append(rate)
    plain = all_["plain"]
    return [
        Cost(
            n_prompt, name, c.held, plain.held, c.at_prompt, plain.at_prompt,
            spread([a / b for a, b in zip(rates[name], rates["plain"], strict=True)]),
            spread(rates[name]).median,
        )
        for name, c in all_.items()
    ]  # fmt: skip


# ------------------------------------------------------------------------------- quality


@dataclass(frozen=True)
class ByLot:
    """The control: the last rows of the prompt and others by lot, of each head."""

    budget: int
    slot = "kv"
    traits = Traits(Guarantee.APPROXIMATE, rows="head", drops=True)

    def barrier(self, n_prompt: int, length: int) -> int:
        return n_prompt if length < n_prompt else FOREVER

    def plan(self, view: KVView, taps: dict[str, Any]) -> KVPlan | None:
        if view.n <= self.budget:
            return None
        lot = np.random.default_rng(view.n).random((view.n_layers, view.n_kv, view.n))
        return view.keep_top(lot, self.budget, always=np.arange(view.n) >= view.n - WINDOW)


class Script:
    """Lets the model answer, then says the second question, then lets it answer that."""

    def __init__(self, end: int, follow: list[int]) -> None:
        self.end, self.follow = end, follow
        self.said: list[int] = []

    def forced(self) -> list[int]:
        if self.end not in self.said:
            return []
        return self.follow[len(self.said) - self.said.index(self.end) - 1 :]

    def mask(self, out: Any) -> None:
        forced = self.forced()
        out[:] = not forced
        if forced:
            out[forced[0]] = True

    def advance(self, ids: Sequence[int]) -> int:
        for n, token in enumerate(ids):
            if self.forced()[:1] not in ([], [token]):
                return n
            self.said.append(token)
        return len(ids)

    def rollback(self, n: int) -> None:
        del self.said[len(self.said) - n :]

    def fork(self) -> Script:
        new = Script(self.end, self.follow)
        new.said = list(self.said)
        return new

    def done(self) -> bool:
        return False


@dataclass(frozen=True)
class Conversation:
    """A constraint: each request takes the next script."""

    scripts: deque[Script] = field(default_factory=deque)
    slot = "constrain"
    traits = EXACT

    def open(self, tokenizer: Tokenizer) -> Script:
        return self.scripts.popleft()


@dataclass(frozen=True)
class Quality:
    """Answers found of `items`."""

    task: str
    method: str
    items: int
    first: int
    second: int
    n_prompt: float  # tokens, mean


def quality_methods(budget: int) -> dict[str, Any]:
    tuned = f"snapkv:budget={budget},window={WINDOW},kernel=9"
    return {
        "plain": None,
        tuned: tuned,
        f"snapkv:budget={budget}": f"snapkv:budget={budget}",  # its window, 32, is longer than the question
        f"by lot, {budget} rows": ByLot(budget),
        f"streaming-llm:window={budget - 4}": f"streaming-llm:window={budget - 4},every=16",
        f"quest:tokens={budget}": f"quest:tokens={budget},dense_layers=0",
        "kvfmt.int8": "kvfmt.int8",
    }


def quality(name: str, tasks: Sequence[Task], budget: int) -> list[Quality]:
    out = []
    for label, method in quality_methods(budget).items():
        talk = Conversation()
        use = [talk] if method is None else [talk, method]
        llm = LLM(use=use, threads=1, defaults=("match", "fcfs"))
        first = second = n_prompt = 0
        for i in range(0, len(tasks), 10):
            prompts = [conversation(llm.tokenizer, t, talk) for t in tasks[i : i + 10]]
            groups = llm.engine.run([Request(tuple(p), 44, ignore_eos=True) for p in prompts])
            for task, (seq,) in zip(tasks[i : i + 10], groups, strict=True):
                one, two = said_by(llm.tokenizer, seq.new, seq.constraint)
                first += one == task.questions[0][1]
                second += two == task.questions[1][1]
                n_prompt += seq.n_prompt
        llm.close()
        out.append(Quality(name, label, len(tasks), first, second, n_prompt / len(tasks)))
    return out


def conversation(tokenizer: Tokenizer, task: Task, talk: Conversation) -> list[int]:
    """The first question's prompt; the script that follows its answer is queued."""
    one, two = task.questions
    turns = [{"role": "user", "content": task.text + one[0]}]
    ids = tokenizer.chat(turns)
    both = tokenizer.chat(
        [*turns, {"role": "assistant", "content": "1"}, {"role": "user", "content": two[0]}]
    )
    assert both[: len(ids)] == ids
    answer = both[len(ids) :]
    at = next(i for i, token in enumerate(answer) if token in tokenizer.eos)
    talk.scripts.append(Script(answer[at], answer[at + 1 :]))
    return ids


def said_by(tokenizer: Tokenizer, tokens: Sequence[int], script: Script) -> tuple[str, str]:
    """The model's two answers, "" for one that did not come."""
    ends = [i for i, token in enumerate(tokens) if token == script.end]
    if not ends:
        return "", ""
    start = ends[0] + 1 + len(script.follow)
    stop = next((i for i in ends if i >= start), start)
    return tuple(tokenizer.decode(list(x)).strip() for x in (tokens[: ends[0]], tokens[start:stop]))


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z, p = 1.96, k / n
    mid, half = p + z * z / (2 * n), z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    return (mid - half) / (1 + z * z / n), (mid + half) / (1 + z * z / n)


# ------------------------------------------------------------------------------- the page


def cost_page(costs: list[Cost]) -> str:
    rows = []
    for c in costs:
        held, peak = c.held / c.held_plain, c.peak / c.peak_plain
        s = c.speed
        shown = "1" if c.method == "plain" else f"{s.median:.2f} ({s.low:.2f} to {s.high:.2f})"
        rows.append(
            [f"{c.n_prompt:,}", c.method, f"{c.held / 2**20:.2f} MiB", f"{held:.2f}", f"{peak:.2f}", shown,
             f"{c.tokens_per_second:.0f}", verdict(c)]
        )  # fmt: skip
    heads = ["prompt", "method", "held", "of plain", "peak of plain", "speed of plain", "tokens/s", "here it"]
    return table(heads, rows)


def verdict(c: Cost) -> str:
    """What the numbers say, nothing else."""
    if c.method == "plain":
        return ""
    held = c.held / c.held_plain
    parts = [f"saves {100 * (1 - held):.0f} % of the memory" if held < 0.98 else
             "saves no memory" if held < 1.02 else "takes more memory"]  # fmt: skip
    if c.speed.low > 1.02:
        parts.append("is faster")
    elif c.speed.high < 0.98:
        parts.append("is slower")
    else:
        parts.append("is as fast")
    return ", ".join(parts)


def quality_page(found: list[Quality]) -> str:
    rows = []
    for q in found:
        shown = []
        for k in (q.first, q.second):
            low, high = wilson(k, q.items)
            shown.append(f"{100 * k / q.items:.0f} % ({100 * low:.0f} to {100 * high:.0f})")
        rows.append([q.task, f"{q.n_prompt:.0f}", q.method, *shown])
    return table(["task", "tokens", "method", "1st", "2nd"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("cost", "quality", "all"), default="all")
    parser.add_argument("--items", type=int, default=100, help="texts of each task")
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds of decoding")
    parser.add_argument("--block", type=int, default=16, help="tokens of each turn")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    if min(args.items, args.rounds, args.block) < 1:
        parser.error("--items, --rounds and --block must be at least 1")
    threads = args.threads or len(os.sched_getaffinity(0))
    costs: list[Cost] = []
    found: list[Quality] = []
    if args.part != "quality":
        costs = [c for n in (1000, 4000) for c in cost(n, args.rounds, args.block, threads)]
    if args.part != "cost":
        found += quality("a number in a text", [needle(i) for i in range(args.items)], 64)
        found += quality("registry of 10", [registry(i) for i in range(args.items)], 40)
    where = {**machine(), "threads": str(threads)}
    if args.json:
        print(
            json.dumps(
                {
                    "cost": [asdict(c) for c in costs], "quality": [asdict(q) for q in found],
                    "shape": SHAPE, "machine": where,
                }
            )
        )  # fmt: skip
        return
    print(said(where))
    for page in ([cost_page(costs)] if costs else []) + ([quality_page(found)] if found else []):
        print("\n" + page)


if __name__ == "__main__":
    main()
