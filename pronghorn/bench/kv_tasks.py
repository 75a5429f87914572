"""What KV methods are judged on: prompts, and what is said behind them, made for a model and a length.

A model that speaks the language of `lookups` is asked in it, one that chats is asked about passages; texts
that are not part of the project come from a folder. A talk may have several turns, in the way of SCBench: a
later question comes when the rows were chosen for an earlier one ("-2q", "-turns"), or the prompt is the
context alone and each question starts from it anew ("-requests"), so that nobody knew of it.
"""

from __future__ import annotations

import bisect
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pronghorn.bench import lookups, passages
from pronghorn.bench.prompts import AbsentError

if TYPE_CHECKING:
    from pronghorn.model.tokenizer import Tokenizer

Grade = Callable[[str, str], float]  # what was said, what is right -> 0 to 1


def whole(said: str, answer: str) -> float:
    return float(said == answer)


def holds(said: str, answer: str) -> float:
    return float(answer in said)


def words(said: str, answer: str) -> float:
    """Share of the words that are right at their places."""
    pairs = list(zip(said.split(), answer.split(), strict=False))
    return sum(a == b for a, b in pairs) / len(answer.split())


def values(said: str, answer: str) -> float:
    """`words` of every second one: the question names the others."""
    return words(" ".join(said.split()[1::2]), " ".join(answer.split()[1::2]))


def number(said: str, answer: str) -> float:
    """The last number is right."""
    found = re.findall(r"-?\d[\d,]*", said)
    return float(bool(found) and found[-1].replace(",", "") == answer)


@dataclass(frozen=True)
class Turn:
    """ask: tokens that are said to the model, none where the prompt ends with the question; limit: tokens of
    its answer at most, its end included, 0 where none is awaited."""

    ask: tuple[int, ...]
    limit: int = 0
    answer: str = ""


@dataclass(frozen=True)
class Talk:
    """end: the token that ends an answer. judged: where the turn says a text and awaits no answer, the
    numbers of its tokens whose probability counts."""

    ids: tuple[int, ...]
    turns: tuple[Turn, ...]
    end: int = -1
    judged: tuple[int, ...] = ()


@dataclass(frozen=True)
class Task:
    """names: what each turn counts to; items: of each text the talks about it; rows: tokens that a text takes
    with what is said behind it, of which budgets are shares."""

    names: tuple[str, ...]
    items: tuple[tuple[Talk, ...], ...]
    rows: int
    grade: Grade = whole


def kinds(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Tasks that a model with this tokenizer can be asked."""
    if speaks(tokenizer):
        return tuple(LOOKUPS)
    return (*(CHATS if tokenizer.chat_template else ()), *TEXTS)


def speaks(tokenizer: Tokenizer) -> bool:
    """The language of `lookups`, word by word."""
    if tokenizer.n_vocab != len(lookups.VOCABULARY):
        return False
    marks = 3  # tokens that no text holds
    said = " ".join(lookups.VOCABULARY[marks:])
    return tokenizer.encode(said) == [lookups.BEGIN, *range(marks, len(lookups.VOCABULARY))]


def make(kind: str, tokenizer: Tokenizer, length: int, items: int, data: Path) -> Task:
    """Raises `AbsentError` for one that cannot be had, with the reason."""
    if kind in LOOKUPS:
        return LOOKUPS[kind](kind, length, items)
    if kind in CHATS:
        return CHATS[kind](kind, tokenizer, length, items, data)
    return TEXTS[kind](kind, tokenizer, length, items, data)


# ------------------------------------------------------------------------------- look-ups


def _ids(said: str) -> tuple[int, ...]:
    return tuple(lookups.ID[w] for w in said.split())


def _room(question: tuple[str, str]) -> int:
    """Tokens of a question and its answer."""
    return len(_ids(" ".join(question))) + 1


def _lookup(
    kind: str, length: int, number: int, turns: int
) -> tuple[lookups.Task, Sequence[tuple[str, str]]]:
    """A text and its first questions, which take `length` tokens together."""
    amounts = lookups.JUDGED[kind]
    asked = {"kv": 5, "vt": 5, "mn": 14, "copy": amounts.span + 3}[kind] * turns
    least = amounts.tokens + (lookups.GAP if amounts.span else 0) + asked
    if length < least + 1:
        raise AbsentError(f"{kind} takes {least + 1} tokens or more, not {length}")
    task = lookups.task(kind, number, length - asked, amounts)
    return task, task.questions[:turns]


def _answer(question: tuple[str, str], ask: tuple[int, ...]) -> Turn:
    return Turn(ask, len(question[1].split()) + 1, question[1])


def _asked(kind: str, length: int, items: int, turns: int, names: tuple[str, ...], grade: Grade) -> Task:
    """The first question ends the prompt, the others follow in the same talk."""
    made = []
    for i in range(items):
        task, (first, *others) = _lookup(kind, length, i, turns)
        ids = (lookups.BEGIN, *_ids(f"{task.text} {first[0]}"))
        said = [_answer(first, ()), *(_answer(q, _ids(q[0])) for q in others)]
        made.append((Talk(ids, tuple(said), lookups.STOP),))
    return Task(names, tuple(made), length, grade)


def _kv(kind: str, length: int, items: int) -> Task:
    return _asked(kind, length, items, 4, ("kv", "kv-2q", "kv-turns", "kv-turns"), whole)


def _one(kind: str, length: int, items: int) -> Task:
    grade = {"vt": whole, "mn": values, "copy": words}[kind]
    return _asked(kind, length, items, 1, (kind,), grade)


def _requests(kind: str, length: int, items: int) -> Task:
    made = []
    for i in range(items):
        task, asked = _lookup("kv", length, i, 2)
        ids = (lookups.BEGIN, *_ids(task.text))
        made.append(tuple(Talk(ids, (_answer(q, _ids(q[0])),), lookups.STOP) for q in asked))
    return Task((kind,), tuple(made), length)


def _decode(kind: str, length: int, items: int) -> Task:
    """A text of a quarter of the length; behind it, token by token, all that it answers, over and over. The
    answers' tokens count. They are many, so a quarter of the texts will do."""
    made, n = [], length // 4
    if n < 40:
        raise AbsentError(f"{kind} takes 160 tokens or more, not {length}")
    for i in range(-(-items // 4)):
        r = random.Random(f"{kind} {length} {i}")
        amounts = lookups.Amounts(pairs=n // 12, chains=n // 48, needles=True)
        ids, questions = lookups.document(r, amounts, n)
        said: list[int] = []
        judged: list[int] = []
        while len(ids) + len(said) < length:
            for q in r.sample(questions, len(questions)):
                start = len(said) + len(q.ask)
                said += [*q.ask, *q.answer]
                judged += range(start, len(said))
        said = said[: length - len(ids)]
        counted = tuple(j for j in judged if j < len(said))
        made.append((Talk(tuple(ids), (Turn(tuple(said)),), judged=counted),))
    return Task((kind,), tuple(made), length)


LOOKUPS: dict[str, Callable[[str, int, int], Task]] = {
    "kv": _kv, "kv-requests": _requests, "vt": _one, "mn": _one, "copy": _one, "decode": _decode,
}  # fmt: skip


# ------------------------------------------------------------------------------- passages

ANSWER = 24  # tokens of an answer to a question about a passage, at most
REASONING = 256  # of one to a problem


def _chat(tokenizer: Tokenizer, context: str, asked: Sequence[str]) -> tuple[list[int], list[list[int]], int]:
    """A prompt that ends with the first question, what is said for each further one, and what ends an
    answer."""
    said = [{"role": "user", "content": context + asked[0]}]
    ids = prompt = tokenizer.chat(list(said))
    follow = []
    end = -1
    for question in asked[1:]:
        said += [{"role": "assistant", "content": "1"}, {"role": "user", "content": question}]
        more = tokenizer.chat(list(said))
        if more[: len(ids)] != ids:
            raise AbsentError("its chat template rewrites earlier turns")
        new, ids = more[len(ids) :], more
        at = next((i for i, token in enumerate(new) if token in tokenizer.eos), -1)
        if at < 0:
            raise AbsentError("its chat template does not end an answer with a token that ends texts")
        end = new[at]
        follow.append(new[at + 1 :])
    return prompt, follow, end


def _filled(
    make: Callable[[int], passages.Passage], tokenizer: Tokenizer, length: int, turns: int
) -> tuple[passages.Passage, list[int], list[list[int]], int]:
    """The longest passage that fits with its questions and answers, and `_chat` about it."""

    def said(size: int) -> tuple[passages.Passage, list[int], list[list[int]], int]:
        passage = make(size)
        return passage, *_chat(tokenizer, passage.text, [q for q, _ in passage.questions[:turns]])

    def room(size: int) -> int:
        _, prompt, follow, _ = said(size)
        return len(prompt) + sum(map(len, follow)) + turns * ANSWER

    sizes = range(4, max(5, length // 5))  # a sentence or an entry has 5 tokens or more
    fit = bisect.bisect_right(sizes, length, key=room)
    if not fit:
        raise AbsentError(f"it does not fit into {length} tokens")
    return said(sizes[fit - 1])


def _passages(kind: str, tokenizer: Tokenizer, length: int, items: int, data: Path) -> Task:
    source, turns = {"needle": (passages.needle, 2), "registry": (passages.registry, 4)}[kind]
    made = []
    for i in range(items):
        passage, prompt, follow, end = _filled(partial(source, i), tokenizer, length, turns)
        asks = [[], *follow]
        said = [Turn(tuple(asks[j]), ANSWER, passage.questions[j][1]) for j in range(turns)]
        made.append((Talk(tuple(prompt), tuple(said), end),))
    return Task((kind, f"{kind}-2q", *[f"{kind}-turns"] * (turns - 2)), tuple(made), length, holds)


def _chat_requests(kind: str, tokenizer: Tokenizer, length: int, items: int, data: Path) -> Task:
    """What the prompts of two questions begin with alike is the context."""
    made = []
    for i in range(items):
        passage, _, _, end = _filled(partial(passages.registry, i), tokenizer, length, 2)
        both = [_chat(tokenizer, passage.text, [q])[0] for q, _ in passage.questions[:2]]
        n = next(j for j, (a, b) in enumerate(zip(*both, strict=False)) if a != b)
        asks = [(tuple(ids[n:]), answer) for ids, (_, answer) in zip(both, passage.questions, strict=False)]
        made.append(tuple(Talk(tuple(both[0][:n]), (Turn(ask, ANSWER, a),), end) for ask, a in asks))
    return Task((kind,), tuple(made), length, holds)


def _gsm8k(kind: str, tokenizer: Tokenizer, length: int, items: int, data: Path) -> Task:
    """Problems, asked without examples. Rows are those of a problem and its answer, most of them the
    answer's."""
    lines = _read(data / "gsm8k" / "test.jsonl").splitlines()
    made = []
    for row in map(json.loads, lines[:items]):
        asked = f"{row['question']}\nReason step by step. End with the number that is the answer."
        prompt, _, end = _chat(tokenizer, asked, ["", "Why?"])
        right = row["answer"].rpartition("####")[2].strip().replace(",", "")
        made.append((Talk(tuple(prompt), (Turn((), REASONING, right),), end),))
    rows = sum(len(t.ids) for (t,) in made) // len(made) + REASONING
    if rows > length:
        raise AbsentError(f"a problem with its answer takes {rows} tokens, more than {length}")
    return Task((kind,), tuple(made), rows, number)


CHATS: dict[str, Callable[[str, Tokenizer, int, int, Path], Task]] = {
    "needle": _passages, "registry": _passages, "registry-requests": _chat_requests, "gsm8k": _gsm8k,
}  # fmt: skip


# ------------------------------------------------------------------------------- texts


def _read(path: Path) -> str:
    if not path.exists():
        raise AbsentError(f"{path} is not there: name the folder of the data by --data")
    return path.read_text(encoding="utf-8")


def _wikitext(kind: str, tokenizer: Tokenizer, length: int, items: int, data: Path) -> Task:
    """Pieces from all over the text. A quarter of each is the prompt; the rest is said token by token, and
    counts."""
    text = _read(data / "wikitext2" / "test.txt")
    made = []
    for i in range(items):
        start = i * len(text) // items
        ids = tokenizer.encode(text[start : start + 12 * length])[:length]
        n = length // 4
        if len(ids) < length:
            raise AbsentError(f"the text has no {items} pieces of {length} tokens")
        made.append((Talk(tuple(ids[:n]), (Turn(tuple(ids[n:])),), judged=tuple(range(length - n))),))
    return Task((kind,), tuple(made), length)


TEXTS: dict[str, Callable[[str, Tokenizer, int, int, Path], Task]] = {"wikitext": _wikitext}
NAMES = (*LOOKUPS, *CHATS, *TEXTS)
