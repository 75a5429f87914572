"""What the look-up model answers under KV methods."""

from __future__ import annotations

from pathlib import Path

from pronghorn.bench.kv_compare import graded
from pronghorn.bench.kv_run import Reading, hold
from pronghorn.bench.kv_tasks import make
from pronghorn.llm import LLM

LOOKUP = Path(__file__).parent / "models" / "lookup"


def answered(llm: LLM, kind: str, items: int, length: int) -> dict[str, int]:
    """Texts whose questions are answered without a fault, by what the questions count to (`kv_tasks`)."""
    task = make(kind, llm.tokenizer, length, items, Path())
    heard = hold(llm, [talk for item in task.items for talk in item], Reading())
    return {name: scores.count(1.0) for name, scores in graded(llm.tokenizer, task, heard).items()}
