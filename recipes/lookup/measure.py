"""Share of the tasks that a look-up model answers exactly, through the engine, greedy, nothing compressed.

python -m recipes.lookup.measure tests/models/lookup [--items 200] [--lengths 256,512,1024]

A length counts all tokens: text, questions and answers. `kv-2q` and `vt-2q`: another question, asked behind
the first one and the model's own answer to it. `copy` needs 400 tokens between span and question, so it is
measured from 512 on. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pronghorn.bench.gains_report import markdown
from pronghorn.llm import LLM
from recipes.lookup.tasks import GAP, JUDGED, KINDS, Task, task


def length_of(text: str) -> int:
    return len(text.split())


def made(kind: str, number: int, length: int) -> Task:
    """A task that takes `length` tokens with its first two questions and their answers."""
    amounts = JUDGED[kind]
    asked = {"kv": 10, "vt": 10, "mn": 14, "copy": amounts.span + 3}[kind]
    return task(kind, number, length - asked, amounts)


def answers(llm: LLM, prompts: Sequence[str], expected: Sequence[str]) -> list[str]:
    """What the model says to each, as many tokens as are expected with the ";" after."""
    n = max(length_of(e) for e in expected) + 1
    said = []
    for i in range(0, len(prompts), 16):
        found = llm.generate(prompts[i : i + 16], max_tokens=n, ignore_eos=True)
        assert isinstance(found, list)
        said += [a.text.strip() for a in found]
    return said


def right(said: str, expected: str) -> bool:
    return said == f"{expected} ;"


def judge(llm: LLM, tasks: Sequence[Task]) -> tuple[int, int]:
    """Tasks of one kind whose first question is answered, and those whose second is (0 if they have one)."""
    prompts = [f"{t.text} {t.questions[0][0]}" for t in tasks]
    expected = [t.questions[0][1] for t in tasks]
    said = answers(llm, prompts, expected)
    first = sum(map(right, said, expected))
    if len(tasks[0].questions) < 2:
        return first, 0
    again = [f"{p} {s} {t.questions[1][0]}" for p, s, t in zip(prompts, said, tasks, strict=True)]
    expected = [t.questions[1][1] for t in tasks]
    return first, sum(map(right, answers(llm, again, expected), expected))


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z, p = 1.96, k / n
    mid, half = p + z * z / (2 * n), z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    return (mid - half) / (1 + z * z / n), (mid + half) / (1 + z * z / n)


def shown(k: int, n: int) -> str:
    low, high = wilson(k, n)
    return f"{100 * k / n:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--lengths", default="256,512,1024")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    llm = LLM(args.model, threads=args.threads, defaults=("match", "fcfs"))
    lengths = [int(n) for n in args.lengths.split(",")]
    found: dict[str, list[str]] = {}
    for kind in KINDS:
        for length in lengths:
            fits = kind != "copy" or length >= GAP + JUDGED["copy"].span
            if fits:
                first, second = judge(llm, [made(kind, i, length) for i in range(args.items)])
            found.setdefault(kind, []).append(shown(first, args.items) if fits else "")
            if kind in ("kv", "vt"):
                found.setdefault(f"{kind}-2q", []).append(shown(second, args.items))
            print(kind, length, found[kind][-1], found.get(f"{kind}-2q", [""])[-1], flush=True)
    print("\n" + markdown(["task", *(f"{n:,} tokens" for n in lengths)], [[k, *v] for k, v in found.items()]))
    llm.close()


if __name__ == "__main__":
    main()
