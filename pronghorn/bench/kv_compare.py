"""Runs the tasks of `pronghorn bench kv` under one method after the other."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pronghorn.bench.kv import Record, Result
from pronghorn.bench.kv_methods import PLAIN, Entry
from pronghorn.bench.kv_run import Heard, Reading, hold
from pronghorn.bench.kv_tasks import Task, kinds, make
from pronghorn.bench.ours import PLAIN as WITHOUT
from pronghorn.bench.prompts import AbsentError
from pronghorn.errors import MethodError, RequestError
from pronghorn.llm import LLM

if TYPE_CHECKING:
    from pronghorn.model.tokenizer import Tokenizer

LEAST = 0.1  # right answers of plain decoding with which a comparison makes sense

Tick = Callable[[str, int, int], None]


class Comparison:
    """A record that grows. What it has already is not measured again. tick(what, done, total); save: called
    when a method is through."""

    def __init__(
        self, record: Record, model: str, data: Path, tick: Tick, save: Callable[[], None]
    ) -> None:  # fmt: skip
        self.record, self.model, self.data, self.tick, self.save = record, model, data, tick, save
        self.tasks: dict[str, Task] = {}

    def run(self, entries: Sequence[Entry], asked: Iterable[str]) -> None:
        """asked: tasks; none: all that this model can be asked."""
        plain = self._open(())
        try:
            self._make(plain.tokenizer, list(asked))
        finally:
            plain.close()
        total = len(entries) * len(self.tasks)
        for i, entry in enumerate(entries):
            self._tried(entry, i * len(self.tasks), total)
            self.save()

    def _open(self, use: Sequence[str]) -> LLM:
        return LLM(self.model, list(use), threads=self.record.threads, defaults=WITHOUT)

    def _make(self, tokenizer: Tokenizer, asked: list[str]) -> None:
        of = self.record
        able = kinds(tokenizer)
        for i, kind in enumerate(asked or able):
            self.tick(f"making {kind}", i, len(asked or able))
            if kind not in able:
                of.skipped[kind] = f"this model can be asked {', '.join(able)}"
                continue
            try:
                self.tasks[kind] = make(kind, tokenizer, of.length, of.items, self.data)
            except AbsentError as error:
                of.skipped[kind] = str(error)

    def _tried(self, entry: Entry, done: int, total: int) -> None:
        """A method that nobody asked for may be impossible here."""
        try:
            self._run(entry, done, total)
        except (MethodError, RequestError) as error:
            if entry.specs or entry.name == PLAIN:
                raise
            self.record.failed[entry.label] = str(error)

    def _run(self, entry: Entry, done: int, total: int) -> None:
        llm: LLM | None = None
        current: tuple[str, ...] = ()
        try:
            for i, (kind, task) in enumerate(self.tasks.items()):
                if self._had(entry, task) or self._nothing_to_lose(entry, kind, task):
                    continue
                use = entry.use(task.rows)
                if llm is None or use != current:
                    if llm is not None:
                        llm.close()
                    llm, current = self._open(use), use
                said = f"{entry.label}: {kind}"
                self.tick(said, done + i, total)
                self.record.results += self._judged(llm, entry, task, use)
        finally:
            if llm is not None:
                llm.close()

    def _had(self, entry: Entry, task: Task) -> bool:
        return all(self.record.find(name, entry.name, entry.share) for name in task.names)

    def _nothing_to_lose(self, entry: Entry, kind: str, task: Task) -> bool:
        if entry.name == PLAIN:
            return False
        plain = self.record.find(task.names[0])
        if plain is None or plain.perplexity or plain.figure >= LEAST:
            return False
        right = sum(plain.scores)
        self.record.skipped[kind] = (
            f"without any method the model answers {right:.0f} of {len(plain.scores)}, so none can lose"
        )
        return True

    def _judged(self, llm: LLM, entry: Entry, task: Task, use: tuple[str, ...]) -> list[Result]:
        talks = [t for item in task.items for t in item]
        reading = Reading()
        heard = hold(llm, talks, reading)
        read = reading.bytes / reading.rows if reading.rows else 0.0
        return [
            Result(
                name, entry.name, entry.share, use, tuple(scores), bool(talks[0].judged),
                statistics.fmean(len(t.ids) for t in talks), statistics.fmean(h.held for h in heard),
                statistics.fmean(h.end for h in heard), read,
            )
            for name, scores in graded(llm.tokenizer, task, heard).items()
        ]  # fmt: skip


def graded(tokenizer: Tokenizer, task: Task, heard: Sequence[Heard]) -> dict[str, list[float]]:
    """Scores of each text by what they count to. heard: of all talks, in order."""
    out: dict[str, list[float]] = {name: [] for name in task.names}
    each = iter(heard)
    for item in task.items:
        found: dict[str, list[float]] = {name: [] for name in task.names}
        for talk in item:
            h = next(each)
            if talk.judged:
                found[task.names[0]].append(-statistics.fmean(h.logprobs[j] for j in talk.judged))
                continue
            for i, turn in enumerate(talk.turns):
                said = tokenizer.decode(h.answers[i]).strip() if i < len(h.answers) else ""
                found[task.names[i]].append(task.grade(said, turn.answer))
        for name, scores in found.items():
            out[name].append(statistics.fmean(scores))
    return out
