"""Look-ups in plain words, for models that chat: a text and questions about it.

Everything is drawn from the number of the task, so that every method answers the same tasks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from pronghorn.bench.prompts import DID, WHO

NAMES = ("Anna", "Otto", "Maria", "Hugo", "Clara", "Emil", "Ida", "Paul", "Greta", "Karl")
WORDS = (
    "river gate amber stone lamp cedar violet north harbour bell copper reed dawn apple bridge candle door "
    "eagle field garden hammer island jewel kettle ladder meadow needle orchard paper queen ribbon silver "
    "table valley window yellow anchor basket corner dragon feather glass horse kitchen letter mirror ocean "
    "pepper rabbit shadow thunder village winter"
)
KEYS = WORDS.split()


@dataclass(frozen=True)
class Passage:
    """text ends where a question can follow. questions: (question, answer), all different, two at least."""

    text: str
    questions: tuple[tuple[str, str], ...]


def registry(number: int, length: int = 10) -> Passage:
    """`length` pairs of a word and a number; more than there are words counts as all of them."""
    r = random.Random(f"registry {number}")
    keys = r.sample(KEYS, min(length, len(KEYS)))
    values = {k: str(r.randrange(1000, 10000)) for k in keys}
    asked = r.sample(keys, min(len(keys), 4))
    lines = "".join(f"{k}: {v}\n" for k, v in values.items())
    return Passage(f"Registry:\n{lines}", tuple((f"What is the value of {k}?", values[k]) for k in asked))


def needle(number: int, length: int = 26) -> Passage:
    """Two numbers hidden among `length` sentences."""
    r = random.Random(f"needle {number}")
    lines = [f"{r.choice(WHO)} {r.choice(DID)}." for _ in range(length)]
    names = r.sample(NAMES, 2)
    values = {n: str(r.randrange(1000, 10000)) for n in names}
    for name in names:
        lines.insert(r.randrange(2, len(lines) - 2), f"The secret number of {name} is {values[name]}.")
    asked = tuple((f"What is the secret number of {n}?", values[n]) for n in names)
    return Passage(" ".join(lines) + "\n\n", asked)
