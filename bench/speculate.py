"""What drafting gains on the bundled model: tokens per step and speed against plain decoding.

    python bench/speculate.py [--rounds 5] [--tokens 96] [--threads N] [--json]

Each task has six prompts. Plain decoding and every drafter answer each prompt in turn, in one process, so
that a busy machine slows them alike. *tokens a step*: new tokens over steps, all prompts together; what a
drafter gains at most. *speed*: tokens per second after the first burst, as a ratio to plain within each
round; the middle one of the rounds, and the extremes. At temperature 0.8 all use the same seed. Drafting
here promises the same tokens as plain decoding: a difference ends this program with an error. A drafter that
learns from what it has seen keeps that from round to round; its tokens a step are those of the last round.

In "JSON, schema" the tokens that the schema forces are drafted with or without a drafter: plain decoding has
more than one token a step there too. A drafter pays when a step over several rows costs less than as many
steps; on a model this small, where Python's share of a step is large, that is a high bar for a wide tree.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from _report import Spread, machine, said, spread, table
from _tasks import DID, KEYS, WHO, registry

from pronghorn.compose import names
from pronghorn.llm import LLM, Answer

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "colour": {"enum": ["red", "green", "blue", "yellow"]},
        "member": {"type": "boolean"},
    },
    "required": ["name", "age", "colour", "member"],
    "additionalProperties": False,
}
N = 6  # prompts of a task
PLAIN = "plain"


@dataclass(frozen=True)
class Task:
    name: str
    prompts: tuple[str, ...]
    use: tuple[str, ...] = ()
    endless: bool = False  # go on past the end of the text


@dataclass(frozen=True)
class Result:
    task: str
    temperature: float
    drafter: str
    length: float  # tokens a step
    speed: Spread  # times plain
    tokens_per_second: float
    new_tokens: int


def tasks() -> list[Task]:
    r = random.Random(5)
    text = [" ".join(f"{r.choice(WHO)} {r.choice(DID)}." for _ in range(5)) for _ in range(N)]
    codes = [c for p in ("text", "seq", "rng") for c in functions(ROOT / "pronghorn" / f"{p}.py")][:N]
    people = [
        f"name is {r.choice(KEYS).capitalize()}, age is {r.randrange(99)}, colour is red" for _ in range(N)
    ]
    lookups = [registry(i, 8) for i in range(N)]
    schema = json.dumps(SCHEMA).replace("'", "")
    return [
        Task("copying", tuple(f"Repeat exactly:\n{t}" for t in text)),
        Task("look-up", tuple(t.text + t.questions[0][0] for t in lookups)),
        Task("renaming in code", tuple(f"Rename self to {r.choice(KEYS)}:\n{c}" for c in codes)),
        Task("JSON, schema", tuple(f"Write as JSON: {p}." for p in people), (f"json:schema='{schema}'",)),
        Task("free text", tuple(f"Tell a story. {t.split('.')[0]}" for t in text), endless=True),
    ]


def functions(path: Path) -> list[str]:
    """The methods of a file, short enough to be copied."""
    parts = path.read_text(encoding="utf-8").split("\n    def ")[1:]
    return [("def " + p.split("\n\n")[0])[:350] for p in parts if "self" in p]


def answer(llm: LLM, prompt: str, n: int, temperature: float, endless: bool) -> tuple[Answer, int, float]:
    """The answer, and the tokens after the first burst with the seconds that they took."""
    times: list[float] = []
    after = 0
    chat = [{"role": "user", "content": prompt}]
    stream = llm.chat_stream(chat, max_tokens=n, temperature=temperature, seed=1, ignore_eos=endless)
    for piece in stream:
        after += len(piece.tokens) if times else 0
        times.append(time.perf_counter())
    return stream.answer, after, times[-1] - times[0]


def measure(task: Task, temperature: float, rounds: int, n: int, threads: int) -> list[Result]:
    drafters = [PLAIN, *names()["draft"]]
    models = {
        d: LLM(use=task.use, threads=threads, defaults=("match", "fcfs", *([] if d == PLAIN else [d])))
        for d in drafters
    }
    rates: dict[str, list[float]] = {d: [] for d in drafters}
    steps: dict[str, int] = {}
    new: dict[str, int] = {}
    texts: dict[str, list[tuple[int, ...]]] = {}
    for i in range(rounds + 1):
        total = {d: [0, 0.0] for d in drafters}
        steps, new = dict.fromkeys(drafters, 0), dict.fromkeys(drafters, 0)
        texts = {d: [] for d in drafters}
        for prompt in task.prompts:
            for d, llm in models.items():
                got, after, seconds = answer(llm, prompt, n, temperature, task.endless)
                total[d][0] += after
                total[d][1] += seconds
                steps[d] += got.stats.steps
                new[d] += got.stats.new_tokens
                texts[d].append(got.tokens)
        if i:  # the first round warms up
            for d, (count, seconds) in total.items():
                rates[d].append(count / seconds)
    for llm in models.values():
        llm.close()
    wrong = [d for d in drafters if texts[d] != texts[PLAIN]]
    if wrong:
        raise SystemExit(f"{task.name} at temperature {temperature}: {', '.join(wrong)} changed the tokens")
    return [
        Result(
            task.name, temperature, d, new[d] / steps[d],
            spread([a / b for a, b in zip(rates[d], rates[PLAIN], strict=True)]),
            spread(rates[d]).median, new[d],
        )
        for d in drafters
    ]  # fmt: skip


def page(results: Sequence[Result]) -> str:
    rows = []
    for r in results:
        s = r.speed
        speed = "1" if r.drafter == PLAIN else f"{s.median:.2f} ({s.low:.2f} to {s.high:.2f})"
        rows.append(
            [r.task, f"{r.temperature:g}", r.drafter, f"{r.length:.2f}", speed, f"{r.tokens_per_second:.0f}"]
        )
    return table(["task", "temperature", "drafter", "tokens a step", "speed of plain", "tokens/s"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens of an answer, at most")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    if args.rounds < 1 or args.tokens < 2:
        parser.error("--rounds must be at least 1 and --tokens at least 2")
    threads = args.threads or len(os.sched_getaffinity(0))
    results = [
        r for task in tasks() for t in (0.0, 0.8) for r in measure(task, t, args.rounds, args.tokens, threads)
    ]
    where = {**machine(), "threads": str(threads)}
    if args.json:
        print(json.dumps({"results": [asdict(r) for r in results], "machine": where}))
        return
    print(f"{args.rounds} rounds in turn, one process; {said(where)}\n")
    print(page(results))


if __name__ == "__main__":
    main()
