"""Who answers prompts in `pronghorn bench speculate`: our engine with one drafter, or a peer in one way.

Each of ours has an engine of its own, which learns what its steps cost from its own steps alone. What a
drafter remembers of earlier requests lives in the method's instance: a fresh one is made for every cell.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pronghorn.bench.engines import CannotError, Launch, Process
from pronghorn.bench.gains import PLAIN
from pronghorn.bench.ours import PLAIN as WITHOUT
from pronghorn.bench.prompts import Category
from pronghorn.compose import names, parse
from pronghorn.errors import MethodError, RequestError
from pronghorn.llm import LLM
from pronghorn.seq import Request
from pronghorn.types import Guarantee

if TYPE_CHECKING:
    from pronghorn.seq import Seq

DRAFT_MODEL = "draft-model"


@dataclass(frozen=True)
class Asked:
    """Prompts to answer at once. stop: tokens that end a text, unless it is endless."""

    prompts: Sequence[Sequence[int]]
    category: Category
    tokens: int
    temperature: float
    seed: int
    stop: Sequence[int]


@dataclass(frozen=True)
class Answered:
    """See `gains.Sample`. answers: new tokens of each prompt; by: drafted and accepted, by drafter."""

    answers: list[list[int]]
    tokens: int
    seconds: float
    whole: float
    steps: int
    rows: int
    by: dict[str, tuple[int, int]]


class Contestant(Protocol):
    name: str

    def begin(self) -> None:
        """Forget earlier requests."""
        ...

    def keeps(self, temperature: float) -> bool:
        """Whether it promises the very tokens of plain decoding."""
        ...

    def answer(self, asked: Asked) -> Answered: ...

    def close(self) -> None: ...


class Ours:
    """draft: a method's spec, "" for plain decoding. Raises `PronghornError` where it cannot be had."""

    def __init__(self, model: str, use: Sequence[str], draft: str, threads: int) -> None:
        self.name = draft or PLAIN
        self._draft = draft
        chosen = [*use, draft] if draft else list(use)
        self.llm = LLM(model, chosen, threads=threads, defaults=WITHOUT)
        self.guarantee = self.llm.methods.guarantee
        self._use: tuple[Any, ...] = ()

    def begin(self) -> None:
        self._use = (parse(self._draft)[1],) if self._draft else ()

    def keeps(self, temperature: float) -> bool:
        """That the KV methods among `use` approximate changes plain decoding just as much."""
        promised = [m.traits.guarantee for m in (self.llm.methods.draft, self.llm.methods.verify)]
        if Guarantee.APPROXIMATE in promised:
            return False
        return temperature == 0 or Guarantee.DISTRIBUTION not in promised

    def answer(self, asked: Asked) -> Answered:
        engine, c = self.llm.engine, asked.category
        seqs: list[Seq] = []
        begin = time.perf_counter()
        try:
            for i, ids in enumerate(asked.prompts):
                seqs += engine.submit(
                    Request(
                        tuple(ids), asked.tokens, asked.temperature, asked.seed + i, ignore_eos=c.endless,
                        use=(*c.use, *self._use),
                    )
                )  # fmt: skip
            while not all(s.n_new or s.finish for s in seqs):
                engine.step()
            start, early = time.perf_counter(), sum(s.n_new for s in seqs)
            while not all(s.finish for s in seqs):
                engine.step()
            end = time.perf_counter()
        finally:
            for s in seqs:
                engine.cancel(s)
        for s in seqs:
            if s.error:
                raise RequestError(s.error)
        by: dict[str, tuple[int, int]] = {}
        for s in seqs:
            for name, (drafted, accepted) in s.counts.drafters.items():
                had = by.get(name, (0, 0))
                by[name] = had[0] + drafted, had[1] + accepted
        return Answered(
            [list(s.new) for s in seqs], sum(s.n_new for s in seqs) - early, end - start, end - begin,
            sum(s.counts.steps for s in seqs), sum(s.counts.draft_rows for s in seqs), by,
        )  # fmt: skip

    def close(self) -> None:
        self.llm.close()


class Peer:
    """A peer's process. Its driver's `answer` is asked (bench/peers)."""

    def __init__(self, launch: Launch) -> None:
        self.name = launch.name
        self._process = Process(launch)
        try:
            self._process.prepare()
            self.version = str(self._process.load()[0]["version"])
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        pass

    def keeps(self, temperature: float) -> bool:
        return False  # its arithmetic is its own: near ties fall otherwise

    def answer(self, asked: Asked) -> Answered:
        if asked.category.use:
            raise CannotError(f"{self.name}: asked without our constraint it would write something else")
        said = self._process.ask(
            "answer", prompts=[list(p) for p in asked.prompts], tokens=asked.tokens,
            temperature=asked.temperature, seed=asked.seed,
            stop=[] if asked.category.endless else list(asked.stop),
        )  # fmt: skip
        return Answered(said["answers"], said["tokens"], said["seconds"], said["whole"], 0, 0, {})

    def close(self) -> None:
        self._process.close()


def drafters() -> list[str]:
    """Those that need no file and no other model, `auto` first."""
    out = []
    for name in names()["draft"]:
        try:
            _, method = parse(f"draft.{name}")
        except MethodError:
            continue  # it must be told of a file
        if all(m.partition(":")[0] == "self" for m in method.traits.models):
            out.append(name)
    return sorted(out, key=lambda n: (n != "auto", n))


def spec_of(name: str) -> str:
    """`--draft lookahead:window=5` with the slot said, as other slots may have the name."""
    return name if name.startswith("draft.") else f"draft.{name}"
