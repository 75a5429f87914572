"""What drafting gains: the record of `pronghorn bench speculate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pronghorn.bench.record import Spread, spread

PLAIN = "plain"
ALL = "all"  # every category together
AUTO = "auto"


@dataclass(frozen=True)
class Sample:
    """What one contestant did in one round. tokens, seconds: after the step in which the last prompt of a
    batch had its first token; new: all new tokens; whole: seconds with the prompts; steps: those that gave a
    sequence a token, summed over sequences; rows: of drafts. Peers do not tell steps and rows: 0."""

    round: int
    tokens: int
    seconds: float
    new: int
    whole: float
    steps: int = 0
    rows: int = 0


@dataclass
class Result:
    """A cell: a category at a size of batches and a temperature. samples: by contestant, a round each;
    drafters: by contestant, tokens drafted and accepted by whom; differ: answers that are not plain
    decoding's; wrong: who had such although it promises to have none; cannot: why one has no figure."""

    category: str
    batch: int
    temperature: float
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    drafters: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    differ: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    cannot: dict[str, str] = field(default_factory=dict)

    def rate(self, name: str) -> Spread:
        """Tokens a second."""
        return spread([s.tokens / max(s.seconds, 1e-9) for s in self.samples[name]])

    def ratio(self, name: str, to: str = PLAIN) -> Spread:
        """Speed over another's in the same round."""
        base = {s.round: s.tokens / max(s.seconds, 1e-9) for s in self.samples[to]}
        rates = [(s.round, s.tokens / max(s.seconds, 1e-9)) for s in self.samples[name]]
        return spread([rate / max(base[i], 1e-9) for i, rate in rates if i in base])

    def whole(self, name: str, to: str = PLAIN) -> Spread:
        """`ratio` for whole answers, prompts included."""
        base = {s.round: s.new / s.whole for s in self.samples[to]}
        return spread([s.new / s.whole / base[s.round] for s in self.samples[name] if s.round in base])

    def length(self, name: str) -> float:
        """New tokens a step; 0 where that is not told."""
        steps = sum(s.steps for s in self.samples[name])
        return sum(s.new for s in self.samples[name]) / steps if steps else 0.0

    def rows(self, name: str) -> float:
        """Draft rows run for each new token."""
        return sum(s.rows for s in self.samples[name]) / max(1, sum(s.new for s in self.samples[name]))


def together(results: Sequence[Result]) -> Result:
    """Cells of one batch size and temperature as one: of every round all tokens and all seconds. Who is
    missing from one of the cells is left out."""
    out = Result(ALL, results[0].batch, results[0].temperature)
    for name in results[0].samples:
        if all(r.samples.get(name) for r in results):
            rounds = set.intersection(*({s.round for s in r.samples[name]} for r in results))
            out.samples[name] = [
                _sum(i, [s for r in results for s in r.samples[name] if s.round == i]) for i in sorted(rounds)
            ]
    return out


def _sum(number: int, samples: Sequence[Sample]) -> Sample:
    return Sample(
        number, sum(s.tokens for s in samples), sum(s.seconds for s in samples), sum(s.new for s in samples),
        sum(s.whole for s in samples), sum(s.steps for s in samples), sum(s.rows for s in samples),
    )  # fmt: skip


@dataclass
class Record:
    """A whole run. use: the engine's methods; rounds: counted ones; prompts: of each; tokens: of an answer at
    most; drafters: what they promise, by name; peers: their versions, by name; skipped: categories without
    data, and why; failed: who could not be started, and why."""

    machine: dict[str, str]
    model: str
    use: tuple[str, ...]
    threads: int
    rounds: int
    prompts: int
    tokens: int
    seed: int
    date: str = ""
    precision: str = ""
    drafters: dict[str, str] = field(default_factory=dict)
    peers: dict[str, str] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def cells(self) -> dict[tuple[int, float], list[Result]]:
        """Measured cells by batch size and temperature."""
        out: dict[tuple[int, float], list[Result]] = {}
        for r in self.results:
            if r.samples.get(PLAIN):
                out.setdefault((r.batch, r.temperature), []).append(r)
        return out

    @property
    def wrong(self) -> list[str]:
        """Broken promises, one line each."""
        return [
            f"{name} changed {r.differ[name]} answers of {r.category} at batch {r.batch}, temperature "
            f"{r.temperature:g}"
            for r in self.results
            for name in r.wrong
        ]

    def ours(self, of: Result) -> list[str]:
        """Pronghorn's contestants in a cell, plain decoding first."""
        return [n for n in (PLAIN, *self.drafters) if of.samples.get(n)]

    def best(self, of: Result) -> str:
        """The fastest single drafter of a cell, or plain decoding; "" where nothing was measured."""
        names = [n for n in self.ours(of) if n.partition(":")[0] != AUTO]
        return max(names, key=lambda n: of.ratio(n).median, default="")

    def auto(self, of: Result) -> str:
        """The drafter of a cell that chooses among others, "" where none ran."""
        return next((n for n in self.ours(of) if n.partition(":")[0] == AUTO), "")

    def data(self) -> dict[str, Any]:
        """Everything as JSON has it, with what follows from the samples."""
        out = asdict(self)
        for r, said in zip(self.results, out["results"], strict=True):
            said["speeds"] = {
                name: {
                    "rate": asdict(r.rate(name)), "of_plain": asdict(r.ratio(name)),
                    "of_plain_with_prompts": asdict(r.whole(name)), "tokens_a_step": r.length(name),
                    "draft_rows_a_token": r.rows(name),
                }
                for name in r.samples
                if r.samples.get(PLAIN)
            }  # fmt: skip
        return out


def record_of(data: Mapping[str, Any]) -> Record:
    """The record that was written by `Record.data`."""
    results = []
    for r in data["results"]:
        known = {k: v for k, v in r.items() if k in Result.__dataclass_fields__}
        samples = {name: [Sample(**s) for s in of] for name, of in r["samples"].items()}
        results.append(Result(**{**known, "samples": samples}))
    known = {k: v for k, v in data.items() if k in Record.__dataclass_fields__}
    return Record(**{**known, "use": tuple(data["use"]), "results": results})
