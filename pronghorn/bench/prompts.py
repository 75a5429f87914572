"""What drafters are measured on: categories of prompts.

Half of them are made here, from a seed and from the source of this package, in the forms that the bundled
model was trained on. The others are Spec-Bench's six, MT-bench among them as its first, from files that are
not part of the project: its questions as chat messages, long ones cut so that small models can take them
(texts and passages from their end; a question after a passage stays whole).

Every prompt of a category is asked once, so that no drafter meets an answer that it has seen.
"""

from __future__ import annotations

import ast
import json
import keyword
import random
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pronghorn.errors import RequestError

if TYPE_CHECKING:
    from pronghorn.model.tokenizer import Tokenizer

SOURCE = Path(__file__).resolve().parents[1]
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SPEC_BENCH = "spec_bench/question.jsonl"
LONGEST = 1500  # characters of a question, at most

WHO = (
    "The old miller", "A small fox", "The tailor", "The little girl", "The grey wolf", "An old woman",
    "The youngest son", "A poor fisherman",
)  # fmt: skip
DID = (
    "walked slowly down to the river", "looked out of the window at the snow",
    "found a golden ring in the garden", "sat by the fire and told a story",
    "went into the dark forest to gather wood", "slept under a tall tree all day",
    "heard a voice behind the door", "carried a heavy basket to the market",
)  # fmt: skip
NOUNS = (
    "river gate amber stone lamp cedar violet north harbour bell copper reed dawn apple bridge candle door "
    "eagle field garden hammer island jewel kettle ladder meadow needle orchard paper queen ribbon silver"
)
WORDS = NOUNS.split()
COLOURS = ("red", "green", "blue", "yellow")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "city": {"type": "string", "maxLength": 12},
        "color": {"enum": list(COLOURS)},
        "year": {"type": "integer", "minimum": 1000, "maximum": 2999},
        "member": {"type": "boolean"},
    },
    "required": ["name", "age", "city", "color", "year", "member"],
    "additionalProperties": False,
}
KEPT = {*keyword.kwlist, "self"}  # words of code that are not renamed


class AbsentError(RequestError):
    """A category's data are not there."""


@dataclass(frozen=True)
class Question:
    """turns: what the user says, one after the other; a second turn is asked after the model's answer to the
    first. raw: a text to go on with, no message."""

    turns: tuple[str, ...]
    raw: bool = False


@dataclass(frozen=True)
class Category:
    """use: methods that its requests bring; endless: answers go on past the end of the text."""

    name: str
    questions: tuple[Question, ...]
    use: tuple[Any, ...] = ()
    endless: bool = False


def category(name: str, n: int, seed: int, data: Path) -> Category:
    """A category with `n` prompts; a question of two turns is two. Raises `AbsentError` where the data are
    not there or have fewer, and `RequestError` for an unknown name."""
    r = random.Random(f"{seed} {name}")
    if name in MADE:
        return MADE[name](name, n, r)
    if name not in SPEC:
        raise RequestError(f"no category called {name!r}; known: {', '.join(NAMES)}")
    asked = _spec_bench(name, n, r, data)
    if name == "qa":  # small models would answer a message with one word: too little to be timed
        raw = tuple(Question((f"Question: {q.turns[0]}\nAnswer:",), raw=True) for q in asked)
        return Category(name, raw, endless=True)
    return Category(name, asked)


def encoded(tokenizer: Tokenizer, q: Question, messages: Sequence[dict[str, str]]) -> list[int]:
    """The ids of a question whose turns so far, answers among them, are `messages`."""
    if q.raw:
        return tokenizer.encode(q.turns[-1])
    if tokenizer.chat_template:
        return tokenizer.chat(list(messages))
    return tokenizer.encode("".join(m["content"] + "\n" for m in messages))


# ------------------------------------------------------------------------------- made here


def _copying(name: str, n: int, r: random.Random) -> Category:
    return Category(name, tuple(Question((f"Repeat exactly:\n{story(r, 5)}",)) for _ in range(n)))


def _renaming(name: str, n: int, r: random.Random) -> Category:
    asked = []
    for code in _some(functions(120, 350), n, r, name):
        found = re.findall(r"\b[a-z_]{3,12}\b", code)
        often = sorted({w for w in found if w not in KEPT}, key=lambda w: (-found.count(w), w))
        old = often[0] if often else "self"
        asked.append(Question((f"Rename {old} to {r.choice(WORDS)}:\n{code}",)))
    return Category(name, tuple(asked))


def _code(name: str, n: int, r: random.Random) -> Category:
    """The beginning of a file, up to the middle of one of its functions."""
    texts = [p.read_text(encoding="utf-8") for p in sources()]
    starts = [(t, m.start()) for t in texts for m in re.finditer(r"^ *def ", t, re.M) if m.start() > 400]
    cut = [t[max(0, at - 700) : at + 120] for t, at in _some(starts, n, r, name)]
    return Category(name, tuple(Question((t.partition("\n")[2],), raw=True) for t in cut), endless=True)


def _people(n: int, r: random.Random) -> list[str]:
    return [
        f"name is {r.choice(WORDS).capitalize()}, age is {r.randrange(99)}, city is "
        f"{r.choice(WORDS).capitalize()}, color is {r.choice(COLOURS)}, year is {r.randrange(1900, 2030)}"
        for _ in range(n)
    ]


def _json(name: str, n: int, r: random.Random) -> Category:
    return Category(name, tuple(Question((f"Write as JSON: {p}.",)) for p in _people(n, r)))


def _json_schema(name: str, n: int, r: random.Random) -> Category:
    from pronghorn.compose import load

    asked = tuple(Question((f"Write as JSON: {p}.",)) for p in _people(n, r))
    return Category(name, asked, (load("constrain", "json")(schema=json.dumps(SCHEMA)),))


def _free(name: str, n: int, r: random.Random) -> Category:
    pairs = _some(list(permutations(WORDS, 2)), n, r, name)
    asked = tuple(Question((f"Tell a story of a {a} and a {b}. {story(r, 1)}",)) for a, b in pairs)
    return Category(name, asked, endless=True)


MADE: dict[str, Callable[[str, int, random.Random], Category]] = {
    "copying": _copying, "renaming": _renaming, "code": _code, "json": _json, "json-schema": _json_schema,
    "free-text": _free,
}  # fmt: skip


def story(r: random.Random, n: int) -> str:
    return " ".join(f"{r.choice(WHO)} {r.choice(DID)}." for _ in range(n))


def sources() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def functions(least: int, most: int) -> list[str]:
    """Functions of this package with so many characters."""
    out = []
    for path in sources():
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                code = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
                if least <= len(code) <= most:
                    out.append(code)
    return sorted(set(out))


def _some(of: Sequence[Any], n: int, r: random.Random, name: str) -> list[Any]:
    if len(of) < n:
        raise AbsentError(f"{name} has {len(of)} prompts and {n} are wanted: fewer --rounds or --prompts")
    return r.sample(list(of), n)


# ------------------------------------------------------------------------------- Spec-Bench

FIRST = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
SPEC = {
    "mt-bench": FIRST, "translation": ("translation",), "summarization": ("summarization",), "qa": ("qa",),
    "math": ("math_reasoning",), "rag": ("rag",),
}  # fmt: skip
NAMES = (*MADE, *SPEC)


def _spec_bench(name: str, n: int, r: random.Random, data: Path) -> tuple[Question, ...]:
    path = data / SPEC_BENCH
    if not path.exists():
        raise AbsentError(f"{path}, of Spec-Bench, is not there: name the folder of the data by --data")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    mine = [x["turns"] for x in rows if x["category"] in SPEC[name]]
    r.shuffle(mine)
    out: list[Question] = []
    count = 0
    for turns in mine:
        if count < n:
            out.append(Question(tuple(_cut(t, name) for t in turns)))
            count += len(turns)
    if count < n:
        raise AbsentError(f"{name} has {count} prompts and {n} are wanted: fewer --rounds or --prompts")
    return tuple(out)


def _cut(text: str, name: str) -> str:
    if len(text) <= LONGEST:
        return text
    passage, _, question = text.strip().rpartition("\n") if name == "rag" else (text, "", "")
    return f"{passage[: LONGEST - len(question)]}\n{question}".strip()
