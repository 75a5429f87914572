"""Look-ups in a made-up language of 325 words: what the look-up model (recipes/lookup) learned and is asked.

A text is statements among filler sentences, then questions follow. Every word is one token.

    kv    "amber river bell ;"                "? amber"                    -> "river bell ;"
    vt    "amber river ;" "river stone ;"     "trace amber"                -> "river stone ;"  (two hops)
    mn    "north lamp ;" ... "west gate ;"    "list north east south west" -> "north lamp ... west gate ;"
    copy  "[ amber lamp ... gate ;"           "copy ["                     -> "amber lamp ... gate ;"

The first word of an answer is read off while the prompt is still whole; the others show what a method that
drops rows at its end has left. A text of `mn` and `copy` has pairs beside the needles or the span. No content
word stands for two things in one text. Everything is drawn from numbers that a caller gives, so that every
method answers the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

_WORDS = """
acorn actor album alley almond amber anchor angel ankle anvil apple apron arch armor arrow atlas attic
autumn axle badge baker bamboo banjo banner barn barrel basin basket beacon beard beetle bell bench berry
bishop blanket blossom boat bonnet border bottle boulder branch bread brick bridge broom bucket buckle bugle
bundle butter button cabin cable cactus camel camera candle canoe canvas canyon carpet carrot castle cedar
cellar chain chalk cherry chest chimney circle clock cloud clover cobalt coffee collar comet copper coral
cotton cradle crane crown crystal curtain cypress daisy dancer desert diamond dolphin donkey door dragon
drum eagle elbow emerald engine falcon feather fiddle field finger flame flute forge fossil fountain gallery
garden garlic gate ginger glacier glass glove granite grape guitar hammer harbour harp hazel hedge helmet
heron hollow honey horn ivory ivy jacket jasmine jewel jungle kernel kettle kite ladder lagoon lamp lantern
laurel ledger lemon letter lily linen lizard locket magnet mango maple marble market meadow melon mirror
mitten morning mosaic mountain mustard needle nettle nutmeg oasis ocean olive onion orchard otter oven
oyster paddle palace paper parrot pastry pearl pebble pencil pepper piano pillow pine planet plum pocket
pond poppy prism pumpkin puzzle quarry queen quilt rabbit radish raven reed ribbon robin rocket rope ruby
saddle saffron sail salmon sandal satin scarf shadow shell silver sparrow spice spider spoon spring stable
statue stone summer swan table tailor temple thimble thistle thunder ticket tiger timber torch tower trumpet
tulip tunnel turtle valley velvet violet violin wagon walnut whale wheat willow window winter wolf yarn
zebra zinc
"""
_FILLER = (
    "miller fox girl giant cook sailor king aunt",
    "old small quiet clever tired brave young grey",
    "walked looked ran came went sat slept sang",
    "slowly softly often alone again early gladly twice",
    "to from near past behind under beside across",
    "river hill road house forest lake town mill",
)
CONTENT = _WORDS.split()
WHO, KIND, DID, HOW, WHERE, PLACE = (words.split() for words in _FILLER)

MARKS = ("<|begin|>", "<|end|>", "<|unk|>", ";", "?", "trace", "list", "copy", "[", ".", "the", "a", "and")
NEEDLES = ("north", "east", "south", "west")
VOCABULARY = (*MARKS, *NEEDLES, *WHO, *KIND, *DID, *HOW, *WHERE, *PLACE, *CONTENT)
ID = {word: i for i, word in enumerate(VOCABULARY)}

BEGIN, END, STOP, ASK, TRACE, LIST, COPY, SPAN = (
    ID[w] for w in ("<|begin|>", "<|end|>", ";", "?", "trace", "list", "copy", "[")
)
_CONTENT = [ID[w] for w in CONTENT]
_NEEDLES = [ID[w] for w in NEEDLES]

KINDS = ("kv", "vt", "mn", "copy")
GAP = 400  # tokens between the end of a span and the question for it, where the text is long enough

Ids = list[int]


@dataclass(frozen=True)
class Amounts:
    """What a text holds: pairs, chains of two hops, four needles or none, a span of so many words."""

    pairs: int = 0
    chains: int = 0
    needles: bool = False
    span: int = 0

    @property
    def tokens(self) -> int:
        """Of its statements."""
        return 4 * self.pairs + 6 * self.chains + 12 * self.needles + (self.span + 2) * (self.span > 0)

    @property
    def words(self) -> int:
        """Content words that it takes."""
        return 3 * self.pairs + 3 * self.chains + 4 * self.needles + self.span


JUDGED = {
    "kv": Amounts(pairs=48),
    "vt": Amounts(chains=16),
    "mn": Amounts(pairs=16, needles=True),
    "copy": Amounts(pairs=8, span=64),
}


@dataclass(frozen=True)
class Question:
    """kind: one of `KINDS`. answer: with the ";" that ends it."""

    kind: str
    ask: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """text ends where a question can follow, with a space between. questions: (question, answer); several
    different ones of kinds kv and vt, one of the others. An answer ends before its " ;"."""

    kind: str
    text: str
    questions: tuple[tuple[str, str], ...]


def say(ids: Sequence[int]) -> str:
    """The text that the tokenizer cuts into `ids`; a begin token, which it adds, is left out."""
    return " ".join(VOCABULARY[i] for i in ids if i != BEGIN)


def sentence(r: random.Random) -> Ids:
    """A filler sentence: what comes next depends on the last few words only."""
    words = ["the" if r.random() < 0.7 else "a"]
    words += [r.choice(KIND)] * (r.random() < 0.5) + [r.choice(WHO), r.choice(DID)]
    words += [r.choice(HOW)] * (r.random() < 0.4)
    words += [r.choice(WHERE), "the", r.choice(PLACE), "."]
    return [ID[w] for w in words]


def filler(r: random.Random, n: int) -> list[Ids]:
    """Sentences of n tokens in all; the last one may be cut."""
    out: list[Ids] = []
    while n > 0:
        out.append(sentence(r)[:n])
        n -= len(out[-1])
    return out


def document(r: random.Random, amounts: Amounts, n: int, gap: int = 0) -> tuple[Ids, list[Question]]:
    """A text of n tokens (more if the statements take more) and all questions that it answers.

    gap: so many tokens at least follow the span, if there are so many.
    """
    words = iter(r.sample(_CONTENT, amounts.words))
    parts: list[Ids] = []
    questions = []
    for _ in range(amounts.pairs):
        k, v, w = next(words), next(words), next(words)
        parts.append([k, v, w, STOP])
        questions.append(Question("kv", (ASK, k), (v, w, STOP)))
    for _ in range(amounts.chains):
        a, b, c = next(words), next(words), next(words)
        parts += [[a, b, STOP], [b, c, STOP]]
        questions.append(Question("vt", (TRACE, a), (b, c, STOP)))
    if amounts.needles:
        found = [(name, next(words)) for name in _NEEDLES]
        parts += [[name, word, STOP] for name, word in found]
        questions.append(Question("mn", (LIST, *_NEEDLES), (*(i for pair in found for i in pair), STOP)))
    parts += filler(r, n - 1 - amounts.tokens)
    r.shuffle(parts)
    if amounts.span:
        span = [next(words) for _ in range(amounts.span)]
        after, last = 0, len(parts)  # the span goes before one of the first `last` parts, or at the end
        while last > 0 and after < gap:
            last -= 1
            after += len(parts[last])
        parts.insert(r.randint(0, last), [SPAN, *span, STOP])
        questions.append(Question("copy", (COPY, SPAN), (*span, STOP)))
    return [BEGIN, *(i for part in parts for i in part)], questions


def task(kind: str, number: int, length: int, amounts: Amounts | None = None) -> Task:
    """The task of this number. length: tokens of its text, the begin token included (more if the statements
    take more); amounts: those of `JUDGED` by default."""
    r = random.Random(f"{kind} {length} {number}")
    ids, questions = document(r, amounts or JUDGED[kind], length, GAP)
    asked = [q for q in questions if q.kind == kind]
    r.shuffle(asked)
    return Task(kind, say(ids), tuple((say(q.ask), say(q.answer[:-1])) for q in asked))
