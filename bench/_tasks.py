"""Look-ups that the bundled model was made for: a text and two questions about it.

Everything is drawn from the number of the task, so that every method answers the same tasks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

NAMES = ("Anna", "Otto", "Maria", "Hugo", "Clara", "Emil", "Ida", "Paul", "Greta", "Karl")
WHO = ("The old miller", "A small fox", "The tailor", "The little girl", "The grey wolf", "An old woman")
DID = (
    "walked slowly down to the river",
    "looked out of the window at the snow",
    "found a golden ring in the garden",
    "sat by the fire and told a story",
    "went into the dark forest to gather wood",
    "slept under a tall tree all day",
)
WORDS = (
    "river gate amber stone lamp cedar violet north harbour bell copper reed dawn apple bridge candle door "
    "eagle field garden hammer island jewel kettle ladder meadow needle orchard paper queen ribbon silver "
    "table valley window yellow anchor basket corner dragon feather glass horse kitchen letter mirror ocean "
    "pepper rabbit shadow thunder village winter"
)
KEYS = WORDS.split()


@dataclass(frozen=True)
class Task:
    """text ends where a question can follow. questions: (question, answer), two that differ."""

    text: str
    questions: tuple[tuple[str, str], tuple[str, str]]


def registry(number: int, length: int = 10) -> Task:
    """`length` pairs of a word and a number; more than there are words counts as all of them."""
    r = random.Random(f"registry {number}")
    keys = r.sample(KEYS, min(length, len(KEYS)))
    values = {k: str(r.randrange(1000, 10000)) for k in keys}
    first, second = r.sample(keys, 2)
    lines = "".join(f"{k}: {v}\n" for k, v in values.items())
    return Task(
        f"Registry:\n{lines}",
        tuple((f"What is the value of {k}?", values[k]) for k in (first, second)),  # type: ignore[arg-type]
    )


def needle(number: int, length: int = 26) -> Task:
    """Two numbers hidden among `length` sentences (at most 60)."""
    r = random.Random(f"needle {number}")
    lines = [f"{r.choice(WHO)} {r.choice(DID)}." for _ in range(min(length, 60))]
    names = r.sample(NAMES, 2)
    values = {n: str(r.randrange(1000, 10000)) for n in names}
    for name in names:
        lines.insert(r.randrange(2, len(lines) - 2), f"The secret number of {name} is {values[name]}.")
    return Task(
        " ".join(lines) + "\n\n",
        tuple((f"What is the secret number of {n}?", values[n]) for n in names),  # type: ignore[arg-type]
    )
