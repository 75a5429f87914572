"""What the look-up model learns from: documents of `pronghorn.bench.lookups` and all that they answer."""

from __future__ import annotations

import random

from pronghorn.bench.lookups import END, KINDS, Amounts, Ids, document


def draw(r: random.Random, n: int) -> Amounts:
    """What a text of about n tokens may hold: one kind of thing mostly, or some of each."""
    kind = r.choices(("kv", "vt", "mn", "copy", "all"), (30, 20, 15, 20, 15))[0]
    if kind == "kv":
        return Amounts(pairs=r.randint(2, max(2, min(64, n // 4))))
    if kind == "vt":
        return Amounts(chains=r.randint(2, max(2, min(24, n // 6))))
    few = r.randint(1, max(1, min(32, (n - 12) // 8)))
    if kind == "mn":
        return Amounts(pairs=few, needles=True)
    if kind == "copy":
        longest = max(4, min(80, n // 2))
        return Amounts(pairs=few, span=r.randint(longest // 2, longest))
    return Amounts(
        few, r.randint(1, max(1, min(16, n // 24))), n >= 64, r.randint(2, max(4, min(64, n // 4)))
    )


def row(r: random.Random, n: int) -> tuple[Ids, list[int]]:
    """A training text of n + 1 tokens, and what each is: 0 text, 1 + the number of its kind for an answer,
    the negative of that for one given before.

    Its statements and filler take 40 % or more, its questions the rest: all once, then again.
    """
    size = int(n * r.uniform(0.4, 0.9))
    amounts = draw(r, size)
    ids, questions = document(r, amounts, size)
    what = [0] * len(ids)
    first = True
    while len(ids) < n:
        for q in r.sample(questions, len(questions)):
            kind = 1 + KINDS.index(q.kind)
            ids += [*q.ask, *q.answer]
            what += [0] * len(q.ask) + [kind if first else -kind] * len(q.answer)
        first = False
    return [*ids[:n], END], [*what[:n], 0]
