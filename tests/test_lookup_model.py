"""The look-up model on which KV methods are judged: it answers, and its tasks are what they say."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pronghorn.bench.lookups import CONTENT, GAP, JUDGED, KINDS, VOCABULARY, Amounts, document, say, task
from pronghorn.llm import LLM
from recipes.lookup.texts import row

MODEL = Path(__file__).parent / "models" / "lookup"


@pytest.fixture(scope="module")
def llm():
    made = LLM(MODEL, threads=1, defaults=("match", "fcfs"))
    yield made
    made.close()


@pytest.mark.parametrize("kind", KINDS)
def test_answers(llm, kind):
    """A generous bound: measured accuracies are in the model's SOURCE.md."""
    tasks = [task(kind, i, 600) for i in range(10)]
    prompts = [f"{t.text} {t.questions[0][0]}" for t in tasks]
    expected = [t.questions[0][1] for t in tasks]
    n = max(len(e.split()) for e in expected) + 1
    said = [a.text.strip() for a in llm.generate(prompts, max_tokens=n, ignore_eos=True)]
    assert sum(s == f"{e} ;" for s, e in zip(said, expected, strict=True)) >= 8


def test_what_is_not_in_the_text_is_not_found(llm):
    """The answer comes from the text: without its statement it cannot be given."""
    t = task("kv", 1, 300)
    (question, answer), *_ = t.questions
    gone = t.text.replace(f"{question.split()[1]} {answer} ;", "")
    assert gone != t.text
    assert llm.generate(f"{t.text} {question}", max_tokens=2).text.strip() == answer
    assert llm.generate(f"{gone} {question}", max_tokens=2).text.strip() != answer


def test_each_word_is_one_token(llm):
    for kind in KINDS:
        t = task(kind, 2, 400)
        ids = llm.tokenizer.encode(t.text)
        assert len(ids) == 400 == len(t.text.split()) + 1
        assert [VOCABULARY[i] for i in ids] == ["<|begin|>", *t.text.split()]
        assert llm.tokenizer.decode(ids) == t.text


def test_questions_are_answered_by_the_text():
    kv, vt, mn, copy = (task(kind, 3, 700) for kind in KINDS)
    assert all(f"{q.removeprefix('? ')} {a} ;" in kv.text for q, a in kv.questions)
    assert len(kv.questions) == JUDGED["kv"].pairs and len(set(kv.questions)) == len(kv.questions)
    for q, a in vt.questions:
        first, second = a.split()
        assert f"{q.removeprefix('trace ')} {first} ;" in vt.text and f"{first} {second} ;" in vt.text
    ((_, listed),) = mn.questions
    words = listed.split()
    assert words[::2] == ["north", "east", "south", "west"]
    assert all(f"{a} {b} ;" in mn.text for a, b in zip(words[::2], words[1::2], strict=True))
    ((_, span),) = copy.questions
    assert f"[ {span} ;" in copy.text and len(span.split()) == JUDGED["copy"].span
    assert len(copy.text.split("[ " + span)[1].split()) >= GAP


def test_the_same_number_is_the_same_task():
    assert task("vt", 5, 300) == task("vt", 5, 300) != task("vt", 6, 300)


@pytest.mark.parametrize("n", [64, 128, 1024])
def test_training_rows_hold_true_answers(n):
    r = random.Random(n)
    for _ in range(20):
        ids, what = row(r, n)
        assert len(ids) == len(what) == n + 1
        words = say(ids).split()
        assert any(what)
        # behind an answer of kind kv, the statement before it in the text says the same
        for i in range(1, n):
            if what[i] == 1 and what[i - 1] == 0:
                said = " ".join(words[i - 2 : i])
                assert f" {said} " in " ".join(["", *words[: i - 3], ""])


def test_no_content_word_stands_for_two_things():
    ids, _ = document(random.Random(7), Amounts(pairs=40, chains=8, needles=True, span=64), 700)
    counts = {w: say(ids).split().count(w) for w in CONTENT}
    assert (
        set(counts.values()) <= {0, 1, 2} and sum(c == 2 for c in counts.values()) == 8
    )  # middles of chains
