"""What drafters gain: contestants answer the same prompts in turns, batch by batch, in one process.

Whoever begins changes from batch to batch. A first round of each cell warms up and is not counted. A round is
counted when all have run it, so that one that is cut short leaves whole rounds behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pronghorn.bench.answers import Answered, Asked, Contestant, Ours, Peer, spec_of
from pronghorn.bench.engines import CannotError, EngineError, Launch
from pronghorn.bench.gains import PLAIN, Record, Result, Sample
from pronghorn.bench.prompts import AbsentError, Category, Question, category, encoded
from pronghorn.errors import PronghornError, RequestError
from pronghorn.seq import Request

Tick = Callable[[str, int, int], None]


class Race:
    """The contestants, loaded, and the record that grows. tick(what, done, total)."""

    def __init__(self, record: Record, data: Path, tick: Tick) -> None:
        self.record, self.data, self.tick = record, data, tick
        self.plain: Ours | None = None
        self.contestants: list[Contestant] = []
        self._prompts: dict[str, tuple[Category, list[list[int]]]] = {}

    def __enter__(self) -> Race:
        return self

    def __exit__(self, *_: object) -> None:
        for c in self.contestants:
            c.close()

    # ------------------------------------------------------------------ starting

    def start(self, model: str, asked: Sequence[str], others: Sequence[str]) -> None:
        """Load plain decoding and the drafters. One among `others` that cannot be had stays away, with a word
        in the record."""
        of = self.record
        names = ["", *asked, *others]
        for i, name in enumerate(names):
            self.tick(f"loading {name or PLAIN}", i, len(names))
            try:
                one = Ours(model, of.use, spec_of(name) if name else "", of.threads)
            except PronghornError as error:
                if name not in others:
                    raise
                of.failed[name] = str(error)
                continue
            self.contestants.append(one)
            if name:
                one.name = name
                of.drafters[name] = one.guarantee.value
            else:
                self.plain = one

    def start_peers(self, launches: Sequence[Launch]) -> None:
        for i, launch in enumerate(launches):
            self.tick(f"starting {launch.name}", i, len(launches))
            try:
                peer = Peer(launch)
            except (EngineError, CannotError) as error:
                self.record.failed[launch.name] = str(error)
                continue
            self.contestants.append(peer)
            self.record.peers[peer.name] = peer.version

    # ------------------------------------------------------------------ cells

    def run(self, names: Sequence[str], batches: Sequence[int], temperatures: Sequence[float]) -> None:
        cells = [(n, b, t) for t in temperatures for b in batches for n in names]
        for i, (name, batch, temperature) in enumerate(cells):
            said = f"{name}, batch {batch}, temperature {temperature:g}"
            if name in self.record.skipped:
                continue
            try:
                self.tick(said, i, len(cells))
                cat, prompts = self._category(name)
            except AbsentError as error:
                self.record.skipped[name] = str(error)
                continue
            self._cell(cat, prompts, batch, temperature)

    def _cell(self, cat: Category, prompts: list[list[int]], batch: int, temperature: float) -> None:
        result = Result(cat.name, batch, temperature)
        self.record.results.append(result)
        for c in self.contestants:
            c.begin()
        n = self.record.prompts
        self._round(result, cat, prompts[:n], -1)
        for number in range(self.record.rounds):
            first = (number + 1) * n
            for name, sample in self._round(result, cat, prompts[first : first + n], number).items():
                if name not in result.cannot:
                    result.samples.setdefault(name, []).append(sample)

    def _round(
        self, result: Result, cat: Category, prompts: list[list[int]], number: int
    ) -> dict[str, Sample]:
        """Who ends up in `result.cannot` has no sample. number: -1 warms up."""
        got: dict[str, list[Answered]] = {c.name: [] for c in self.contestants}
        for at in range(0, len(prompts), result.batch):
            turn = (at // result.batch + number + 1) % len(self.contestants)
            seed = self.record.seed + 1000 * (number + 1) + at
            asked = Asked(
                prompts[at : at + result.batch], cat, self.record.tokens, result.temperature, seed,
                sorted(self._plain.llm.engine.eos),
            )  # fmt: skip
            for c in [*self.contestants[turn:], *self.contestants[:turn]]:
                if c.name not in result.cannot:
                    try:
                        got[c.name].append(c.answer(asked))
                    except (EngineError, CannotError, RequestError) as error:
                        if c is self.plain:
                            raise
                        result.cannot[c.name] = str(error)
        if number >= 0:
            self._compare(result, got)
        return {
            name: Sample(
                number, sum(a.tokens for a in of), sum(a.seconds for a in of),
                sum(len(x) for a in of for x in a.answers), sum(a.whole for a in of),
                sum(a.steps for a in of), sum(a.rows for a in of),
            )
            for name, of in got.items()
            if name not in result.cannot
        }  # fmt: skip

    def _compare(self, result: Result, got: dict[str, list[Answered]]) -> None:
        """Book who drafted what, and whose answers are not plain decoding's."""
        plain = [x for a in got[PLAIN] for x in a.answers]
        for c in self.contestants:
            if c.name in result.cannot:
                continue
            for a in got[c.name]:
                for who, (drafted, accepted) in a.by.items():
                    count = result.drafters.setdefault(c.name, {}).setdefault(who, [0, 0])
                    count[0] += drafted
                    count[1] += accepted
            mine = [x for a in got[c.name] for x in a.answers]
            differ = sum(x != y for x, y in zip(mine, plain, strict=True))
            if differ:
                result.differ[c.name] = result.differ.get(c.name, 0) + differ
                if c.keeps(result.temperature) and c.name not in result.wrong:
                    result.wrong.append(c.name)

    # ------------------------------------------------------------------ prompts

    @property
    def _plain(self) -> Ours:
        assert self.plain is not None
        return self.plain

    def _category(self, name: str) -> tuple[Category, list[list[int]]]:
        """A category and the ids of its prompts, warm-up first. Raises `AbsentError`, `RequestError`."""
        if name not in self._prompts:
            of = self.record
            n = (of.rounds + 1) * of.prompts
            cat = category(name, n, of.seed, self.data)
            self._prompts[name] = cat, self._ids(cat)[:n]
        return self._prompts[name]

    def _ids(self, cat: Category) -> list[list[int]]:
        """A prompt for every turn; before a second one stands what plain decoding answers to the first."""
        out: list[list[int]] = []
        for q in cat.questions:
            messages: list[dict[str, str]] = []
            for i, turn in enumerate(q.turns):
                messages.append({"role": "user", "content": turn})
                ids = self._encode(q, messages)
                out.append(ids)
                if i + 1 < len(q.turns):
                    messages.append({"role": "assistant", "content": self._reply(ids)})
        return out

    def _encode(self, q: Question, messages: list[dict[str, str]]) -> list[int]:
        """Cut at its start where the context would not hold the answer too."""
        ids = encoded(self._plain.llm.tokenizer, q, messages)
        context = self._plain.llm.engine.bound.context
        room = context - self.record.tokens
        if room < 1:
            raise RequestError(f"--tokens {self.record.tokens} do not fit into a context of {context}")
        return ids[-room:]

    def _reply(self, ids: list[int]) -> str:
        llm = self._plain.llm
        (seqs,) = llm.engine.run([Request(tuple(ids), self.record.tokens)])
        return llm.tokenizer.decode(seqs[0].new)
