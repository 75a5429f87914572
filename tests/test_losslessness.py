"""Recipe T-G on the bundled model: greedy with each drafter equals greedy without, token by token.

200 prompts x 128 tokens in float32, native runner; prompts are the kinds of text the model was made for.
"""

from __future__ import annotations

import random

import pytest

from pronghorn.compose import names, parse
from pronghorn.llm import BUNDLED, DEFAULT_MODEL, LLM
from pronghorn.model.tokenizer import load_tokenizer
from pronghorn.seq import Request
from pronghorn.types import Guarantee
from tests.small import spec

LOSSLESS = [
    v
    for v in names()["verify"]
    if parse(f"verify.{v}")[1].traits.guarantee is not Guarantee.APPROXIMATE and v != "match"
]
# every drafter with the default verifier, and every other verifier with a drafter of chains and one of trees
CASES = [("match", d) for d in names()["draft"]]
CASES += [(v, d) for v in LOSSLESS for d in ("prompt-lookup", "token-recycling")]
WORDS = [
    "river",
    "gate",
    "amber",
    "stone",
    "lamp",
    "fox",
    "cedar",
    "violet",
    "north",
    "harbour",
    "bell",
    "copper",
    "reed",
    "ash",
    "dawn",
]


def prompts(n: int = 200) -> list[str]:
    rng = random.Random(7)
    out = []
    for i in range(n):
        a, b = rng.sample(WORDS, 2)
        code = rng.randrange(10000, 99999)
        kind = i % 5
        if kind == 0:
            out.append(f"The code of the {a} {b} is {code}. What is the code of the {a} {b}?")
        elif kind == 1:
            text = " ".join(rng.choices(WORDS, k=12))
            out.append(f"Copy this exactly: {text}")
        elif kind == 2:
            out.append(f"Rename {a} to {b}:\ndef {a}(x):\n    {a}_total = x + {code}\n    return {a}_total")
        elif kind == 3:
            out.append(
                "Write as JSON: " + ", ".join(f"{w} {rng.randrange(99)}" for w in rng.sample(WORDS, 4))
            )
        else:
            out.append(f"Once upon a time there was a {a} {b} who")
    return out


def answers(
    use: list[str], asked: list[str], n: int = 128, temperature: float = 0.0, at_once: int = 8
) -> tuple[list[list[int]], int, int]:
    """n new tokens for each prompt; drafted tokens that stood; steps."""
    m = LLM(use=["weight.fp32", *use], threads=1, defaults=("match", "fcfs"))
    chats = [m.tokenizer.chat([{"role": "user", "content": p}]) for p in asked]
    requests = [Request(tuple(c), n, temperature, seed=i, ignore_eos=True) for i, c in enumerate(chats)]
    out, accepted, steps = [], 0, 0
    for i in range(0, len(requests), at_once):
        for (seq,) in m.engine.run(requests[i : i + at_once]):
            out.append(list(seq.new))
            accepted += seq.counts.accepted
            steps += seq.counts.steps
    m.close()
    return out, accepted, steps


@pytest.fixture(scope="module")
def plain() -> list[list[int]]:
    return answers([], prompts())[0]


@pytest.mark.slow
@pytest.mark.parametrize(("verifier", "drafter"), CASES)
def test_greedy_identity(plain: list[list[int]], verifier: str, drafter: str):
    tokenizer = load_tokenizer(BUNDLED / DEFAULT_MODEL, {})
    got, accepted, steps = answers([spec(drafter, "draft", tokenizer), f"verify.{verifier}"], prompts())
    assert len(got) == 200
    assert all(len(g) == 128 for g in got)
    assert got == plain
    assert accepted > 0, "the drafter never helped: the test compares nothing"
    assert steps < 200 * 128
