"""Whether drafts change a token: every lossless drafter under every condition, against no drafts at all.

    python bench/losslessness.py                                the whole matrix; goes on where it stopped
    python bench/losslessness.py --quick                        few prompts; keeps nothing, writes nothing
    python bench/losslessness.py --only suffix --only snapkv    one drafter under one condition
    python bench/losslessness.py --only grammar --again         one condition, all drafters, once more

200 prompts of every category of `pronghorn bench speculate` whose data are there, 128 tokens each, the
bundled model in float32, 20 sequences in a step, `match`. A condition is what is asked for and how rows are
stored; its answers without a drafter are computed once, and each drafter must give the same tokens under
the same condition. Tokens count as identical up to the first difference of their answer. A difference is
printed with its place, and the command ends with status 1 and leaves the page alone. So it does where
nothing was compared: a drafter none of whose tokens stood under any of its conditions, or a condition that
changes no answer.

A cell without differences leaves a record in a folder (--to) and is not run again unless --again says so,
or the answers that it was compared with have changed. The prompts are kept there as well, since some are
made of this package's source. The table goes to docs/guarantees.md, with a dash for a cell that has no
record.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _report import into, machine, said, table

from pronghorn.bench.prompts import DATA, NAMES, SCHEMA, AbsentError, category, sources
from pronghorn.bench.shapes import cache
from pronghorn.cli.bench_setup import bars
from pronghorn.compose import names, parse
from pronghorn.datastore.build import build
from pronghorn.errors import MethodError, PronghornError
from pronghorn.llm import DEFAULT_MODEL, LLM
from pronghorn.methods.draft._trees import KINDS
from pronghorn.seq import Request
from pronghorn.types import Guarantee

if TYPE_CHECKING:
    from pronghorn.model.tokenizer import Tokenizer
    from pronghorn.seq import Seq

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guarantees.md"
TABLE = "losslessness"
PROMPTS, TOKENS, BATCH = 200, 128, 20
QUICK = 22, 48  # prompts and tokens
USE = ("weight.fp32",)
PLAIN = "plain"
DRAFT, STORE = "DRAFT", "STORE"  # stand for the small model and for the file of a datastore
SMALL = "pronghorn-tiny-draft"
LIST = {"type": "array", "minItems": 40, "items": SCHEMA}  # no answer comes to its end

Tick = Callable[[str, int, int], None]
Answers = list[list[int]]


@dataclass(frozen=True)
class Condition:
    use: tuple[str, ...] = ()
    temperature: float = 0.0


CONDITIONS = {
    PLAIN: Condition(),
    "grammar": Condition((f"json:schema='{json.dumps(LIST)}'",)),
    "penalties": Condition(("repetition-penalty:penalty=1.3", "frequency-penalty")),
    "int8 KV": Condition(("kvfmt.int8",)),
    "snapkv": Condition(("snapkv:budget=40,window=16",)),
    "sampled": Condition(temperature=0.8),
}

# what is run of a drafter that cannot do without options, or has several ways; of the others the defaults
WAYS: dict[str, tuple[str, ...]] = {
    "auto": ("", f"drafters=prompt-lookup+draft-model:model={DRAFT}"),
    "draft-model": (
        f"model={DRAFT}", f"model={DRAFT},sample=true",
        *(f"model={DRAFT},tree={kind},nodes=8,length=3" for kind in KINDS if kind != "chain"),
        "model=self:weight=int4",
    ),
    "rapid": ("least=0,budget=64,chunk=8,query=16,first=4",),  # drafts behind short prompts too
    "rasd": ("", f"store={STORE}"),
    "rest": (f"store={STORE}",),
    "token-recycling": ("", "adaptive=true"),
}  # fmt: skip


def drafters(store: Path) -> dict[str, str]:
    """How a table calls each way of each lossless drafter -> its spec. Raises `SystemExit` for a drafter
    whose options nobody has said."""
    out = {}
    for name in names()["draft"]:
        for way in WAYS.get(name, ("",)):
            shown = f"{name}:{way}" if way else name
            spec = f"draft.{shown}".replace(DRAFT, SMALL).replace(STORE, str(store))
            try:
                traits = parse(spec)[1].traits
            except MethodError as error:
                raise SystemExit(f"WAYS must say how to run {name}: {error}") from None
            if traits.guarantee is Guarantee.EXACT:
                out[shown] = spec
    return out


@dataclass(frozen=True)
class Difference:
    """Of one answer. at: how many tokens came before it."""

    prompt: int
    category: str
    at: int
    plain: int
    drafted: int


@dataclass(frozen=True)
class Cell:
    """A drafter under a condition. plain: a digest of what it was compared with; steps: those that gave a
    sequence a token; stood: drafted tokens that did."""

    drafter: str
    condition: str
    plain: str
    tokens: int
    steps: int
    drafted: int
    stood: int
    date: str
    differ: list[Difference] = field(default_factory=list)

    def identical(self, each: int) -> int:
        """each: tokens of an answer."""
        return self.tokens - sum(each - d.at for d in self.differ)

    def told(self, each: int) -> str:
        return f"{self.identical(each):,} of {self.tokens:,}, {self.tokens / max(1, self.steps):.2f}"


@dataclass(frozen=True)
class Asked:
    """Prompts as they are put to the model, by category; each answer has `tokens` tokens."""

    prompts: list[tuple[str, list[int]]]
    tokens: int


def ask(tokenizer: Tokenizer, n: int, tokens: int, data: Path) -> Asked:
    """n prompts from all categories alike; those without data are left out. First turns only."""
    there = []
    for name in NAMES:
        if name == "json-schema":  # "json" under a grammar: a condition here
            continue
        try:
            category(name, 1, 0, data)
        except AbsentError as error:
            print(f"without {name}: {error}", file=sys.stderr)
            continue
        there.append(name)
    out = []
    for i, name in enumerate(there):
        want = n // len(there) + (i < n % len(there))
        for q in category(name, 2 * want, 0, data).questions[:want]:
            text = q.turns[0]
            ids = tokenizer.encode(text) if q.raw else tokenizer.chat([{"role": "user", "content": text}])
            out.append((name, ids))
    return Asked(out, tokens)


def answers(use: Sequence[str], asked: Asked, temperature: float, threads: int, tick: Tick) -> list[Seq]:
    """The sequences of all prompts, each of which has all its tokens. One engine: a drafter that learns goes
    on learning from batch to batch."""
    llm = LLM(DEFAULT_MODEL, [*USE, *use], threads=threads, defaults=("match", "fcfs"))
    out: list[Seq] = []
    try:
        for at in range(0, len(asked.prompts), BATCH):
            tick("", at, len(asked.prompts))
            groups = llm.engine.run([
                Request(tuple(ids), asked.tokens, temperature, seed=at + i, ignore_eos=True)
                for i, (_, ids) in enumerate(asked.prompts[at : at + BATCH])
            ])  # fmt: skip
            out += [seq for (seq,) in groups]
    finally:
        llm.close()
    for seq in out:
        if seq.error or seq.n_new != asked.tokens:
            raise SystemExit(
                f"an answer has {seq.n_new} of {asked.tokens} tokens: {seq.error or 'cut short'}"
            )
    return out


def compare(plain: Answers, got: Answers, asked: Asked) -> list[Difference]:
    """The first difference of each answer that has one."""
    out = []
    for i, (a, b) in enumerate(zip(plain, got, strict=True)):
        at = next((j for j, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), -1)
        if at >= 0:
            out.append(Difference(i, asked.prompts[i][0], at, a[at], b[at]))
    return out


def digest(data: Any) -> str:
    return blake2b(json.dumps(data).encode(), digest_size=8).hexdigest()


class Matrix:
    """Runs cells and keeps what came of them. folder: of the records."""

    def __init__(self, asked: Asked, folder: Path, threads: int, tick: Tick) -> None:
        self.asked, self.folder, self.threads, self.tick = asked, folder, threads, tick
        self._of = digest(asked.prompts)
        self._plain: dict[str, Answers] = {}

    def plain(self, name: str, again: bool) -> Answers:
        """A condition's answers without a drafter."""
        if name not in self._plain:
            c = CONDITIONS[name]
            file, of = (
                self.folder / f"plain {name}.json",
                [self._of, self.asked.tokens, *c.use, c.temperature],
            )
            have = read(file)
            if again or not have or have["of"] != of:
                seqs = answers(
                    c.use, self.asked, c.temperature, self.threads, self._tick(f"no drafts, {name}")
                )
                have = {"of": of, "answers": [list(s.new) for s in seqs]}
                write(file, have)
            self._plain[name] = have["answers"]
        return self._plain[name]

    def kept(self, drafter: str, condition: str) -> Cell | None:
        """The record of a cell, if it was compared with the answers that are there now."""
        have = read(self._file(drafter, condition))
        if not have or have["plain"] != digest(self.plain(condition, False)):
            return None
        return Cell(**{**have, "differ": [Difference(**d) for d in have["differ"]]})

    def run(self, drafter: str, spec: str, condition: str) -> Cell:
        c, plain = CONDITIONS[condition], self.plain(condition, False)
        tick = self._tick(f"{drafter}, {condition}")
        seqs = answers([*c.use, spec], self.asked, c.temperature, self.threads, tick)
        cell = Cell(
            drafter, condition, digest(plain), sum(s.n_new for s in seqs), sum(s.counts.steps for s in seqs),
            sum(s.counts.drafted for s in seqs), sum(s.counts.accepted for s in seqs),
            datetime.date.today().isoformat(), compare(plain, [list(s.new) for s in seqs], self.asked),
        )  # fmt: skip
        file = self._file(drafter, condition)
        if cell.differ:
            file.unlink(missing_ok=True)
        else:
            write(file, asdict(cell))
        return cell

    def changed(self, condition: str) -> int:
        """Answers without a drafter that a condition changes."""
        return sum(
            a != b for a, b in zip(self.plain(PLAIN, False), self.plain(condition, False), strict=True)
        )

    def _file(self, drafter: str, condition: str) -> Path:
        return self.folder / f"{re.sub(r'[^A-Za-z0-9=.-]+', ' ', drafter)}, {condition}.json"

    def _tick(self, what: str) -> Tick:
        return lambda _, done, total: self.tick(what, done, total)


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def write(file: Path, data: Any) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(data), encoding="utf-8")
    os.replace(part, file)


def prepared(tokenizer: Tokenizer, folder: Path, n: int, tokens: int, data: Path) -> Asked:
    """The prompts and the datastore of a folder, made where they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "texts.store").exists():
        build(folder / "texts.store", sources(), tokenizer, DEFAULT_MODEL)
    if (have := read(folder / "prompts.json")) is None:
        have = ask(tokenizer, n, tokens, data).prompts
        write(folder / "prompts.json", have)
    return Asked([(name, ids) for name, ids in have], tokens)


def page(rows: dict[str, dict[str, Cell]], matrix: Matrix) -> str:
    """The table, and what it is of. rows: by drafter and condition."""
    each = matrix.asked.tokens
    body = [
        [f"`{d}`", *(cells[c].told(each) if c in cells else "–" for c in CONDITIONS)]
        for d, cells in rows.items()
    ]
    n = len(matrix.asked.prompts)
    ways = "; ".join(f"{name}: `{' '.join(c.use)}`" for name, c in CONDITIONS.items() if c.use)
    changed = ", ".join(f"{c} {matrix.changed(c)}" for c in CONDITIONS if c != PLAIN)
    dates = sorted({cell.date for cells in rows.values() for cell in cells.values()})
    when = " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]]))
    facts = {k: v for k, v in machine().items() if k not in ("load", "memory")}
    return (
        f"`python bench/losslessness.py`: identical tokens of all, and tokens a step.\n\n"
        f"{table(['drafter', *CONDITIONS], body)}\n\n"
        f"_{DEFAULT_MODEL} in float32; {n} prompts, {each} tokens each, {BATCH} in a step; sampled at "
        f"temperature {CONDITIONS['sampled'].temperature}. {ways}. Of the {n} answers without drafts so many "
        f"are changed by the condition itself: {changed}. {DRAFT}: {SMALL}; {STORE}: a datastore of this "
        f"package's source. {when}; {said(facts)}._"
    )


def chosen(only: Sequence[str], every: dict[str, str]) -> list[tuple[str, str]]:
    """Cells, condition by condition. only: drafters by name or with their options, conditions, none for all.
    Raises `SystemExit` for an unknown one."""
    conditions = [c for c in CONDITIONS if c in only] or list(CONDITIONS)
    wanted = {o for o in only if o not in CONDITIONS}
    some = [d for d in every if d in wanted or d.partition(":")[0] in wanted]
    if unknown := wanted - {*every, *(d.partition(":")[0] for d in every)}:
        known = ", ".join([*CONDITIONS, *dict.fromkeys(d.partition(":")[0] for d in every)])
        raise SystemExit(f"no drafter and no condition called {min(unknown)!r}; known: {known}")
    return [(d, c) for c in conditions for d in (some if wanted else every)]


def nothing(rows: dict[str, dict[str, Cell]], matrix: Matrix) -> list[str]:
    """Where agreement says nothing."""
    idle = [d for d, cells in rows.items() if cells and not any(c.stood for c in cells.values())]
    used = {c for cells in rows.values() for c in cells} - {PLAIN}
    same = sorted(c for c in used if not matrix.changed(c))
    return [f"no drafted token of {d} stood: nothing was compared" for d in idle] + [
        f"{c} changes no answer: nothing was compared" for c in same
    ]


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a drafter or a condition; repeat it"
    )
    parser.add_argument("--quick", action="store_true", help="{} prompts, {} tokens each".format(*QUICK))
    parser.add_argument("--again", action="store_true", help="also cells that have a record")
    parser.add_argument("--threads", type=int, default=1, help="0 for all cores; tokens do not depend on it")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data; else ../shared/data")
    parser.add_argument("--to", type=Path, default=cache() / TABLE, help="folder of the records")
    args = parser.parse_args(given)
    n, tokens = QUICK if args.quick else (PROMPTS, TOKENS)
    if args.quick:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            return go(args, Path(folder), n, tokens)
    return go(args, args.to, n, tokens)


def go(args: argparse.Namespace, folder: Path, n: int, tokens: int) -> int:
    every = drafters(folder / "texts.store")
    cells = chosen(args.only, every)
    bare = LLM(DEFAULT_MODEL, USE, threads=1)
    asked, tokenizer = prepared(bare.tokenizer, folder, n, tokens, args.data), bare.tokenizer
    bare.close()
    differ = 0
    with bars() as tick:
        matrix = Matrix(asked, folder, args.threads, tick)
        for c in dict.fromkeys((PLAIN, *(c for _, c in cells))):
            matrix.plain(c, args.again)
        for drafter, condition in cells:
            cell = None if args.again else matrix.kept(drafter, condition)
            if cell is None:
                cell = matrix.run(drafter, every[drafter], condition)
            print(f"{condition:10} {drafter:52} {cell.told(tokens)}", flush=True)
            for d in cell.differ:
                a, b = (tokenizer.decode([t]) for t in (d.plain, d.drafted))
                print(
                    f"  differs: prompt {d.prompt} ({d.category}), token {d.at}: {d.plain} {a!r} without "
                    f"drafts, {d.drafted} {b!r} with"
                )
            differ += len(cell.differ)
    shown = {d: {c: k for c in CONDITIONS if (k := matrix.kept(d, c))} for d in every}
    idle = nothing(shown, matrix)
    if not differ and not args.quick:
        into(PAGE, {TABLE: f"\n{page(shown, matrix)}\n"})
    for line in idle:
        print(line)
    if differ:
        print(f"{differ} answers differ")
    return 1 if differ or idle else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PronghornError as error:
        sys.exit(f"{error}")
