"""Questions for the look-up model, and how many of them it answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pronghorn.bench.lookups import Task, task
from pronghorn.llm import LLM

MODEL = Path(__file__).parent / "models" / "lookup"


def tasks(kind: str, n: int, length: int = 500) -> list[Task]:
    return [task(kind, i, length) for i in range(n)]


def answered(llm: LLM, asked: Sequence[Task], questions: int = 1) -> int:
    """Tasks of which the first `questions` questions, each behind the last one's answer, are answered."""
    prompts, right = [t.text for t in asked], [True] * len(asked)
    for i in range(questions):
        expected = [f"{t.questions[i][1]} ;" for t in asked]
        prompts = [f"{p} {t.questions[i][0]}" for p, t in zip(prompts, asked, strict=True)]
        said = llm.generate(prompts, max_tokens=max(len(e.split()) for e in expected), ignore_eos=True)
        assert isinstance(said, list)
        texts = [a.text.strip() for a in said]
        right = [r and s == e for r, s, e in zip(right, texts, expected, strict=True)]
        prompts = [f"{p} {s}" for p, s in zip(prompts, texts, strict=True)]
    return sum(right)
