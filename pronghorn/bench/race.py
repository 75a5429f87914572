"""Measuring: engines take turns in every round, and the machine's limits are measured between any two runs,
so that whatever happens on the machine meanwhile happens to all of them. A first round is not counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from pronghorn.bench.attribute import Part, judge
from pronghorn.bench.cells import Cell
from pronghorn.bench.cost import Model, cost
from pronghorn.bench.engines import CannotError, EngineError, Launch, Process, forget
from pronghorn.bench.limits import Limits, Probe, between
from pronghorn.bench.record import OURS, Profile, Record, Result, Sample
from pronghorn.errors import RequestError

SECONDS = 0.4  # of steps in a run, about
FEWEST, MOST = 4, 64  # steps of a run
LONGEST = 60.0  # seconds for the rounds of a cell and an engine, about; two rounds at least

Tick = Callable[[str, int, int], None]


class Race:
    """Engines that are loaded, and the record that grows. tick(what, done, total)."""

    def __init__(
        self, launches: Sequence[Launch], probe: Probe, record: Record, rounds: int, tick: Tick
    ) -> None:
        self.launches, self.probe, self.record = list(launches), probe, record
        self.rounds, self.tick = rounds, tick
        self.engines: dict[str, Process] = {}

    def __enter__(self) -> Race:
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self.engines.values():
            engine.close()

    # ------------------------------------------------------------------ starting

    def prepare(self) -> None:
        """Have peers convert and quantize the checkpoint. Who cannot is left out."""
        for i, launch in enumerate(list(self.launches)):
            self.tick(f"preparing {launch.name}", i, len(self.launches))
            with self._or_left_out(launch), closing(Process(launch)) as engine:
                engine.prepare()

    def start(self, times: int) -> None:
        """Start every engine so many times, in turns; the last ones stay. The first time the checkpoint is
        dropped from the system's cache before ours starts, where that can be done."""
        for turn in range(times):
            for i, launch in enumerate(list(self.launches)):
                self.tick(
                    f"starting {launch.name}", turn * len(self.launches) + i, times * len(self.launches)
                )
                before = self.engines.pop(launch.name, None)
                if before is not None:
                    before.close()
                cold = turn == 0 and launch.name == OURS and forget(Path(launch.model))
                with self._or_left_out(launch):
                    self._start(launch, "cold" if cold else "warm" if turn else "first")
        if OURS not in self.engines:
            raise RequestError(self.record.failed[OURS].removeprefix(f"{OURS}: "))

    def _start(self, launch: Launch, how: str) -> None:
        engine = Process(launch)
        try:
            facts, start, held = engine.load()
        except BaseException:
            engine.close()
            raise
        self.engines[launch.name] = engine
        self.record.loaded[launch.name] = held
        self.record.starts.setdefault(launch.name, {}).setdefault(how, []).append(start)
        if launch.name == OURS:
            self.record.methods = facts["methods"]
            self.record.costs = Model(**{**facts["cost"], "windows": tuple(facts["cost"]["windows"])})
        else:
            self.record.versions[launch.name] = facts["version"]

    @contextmanager
    def _or_left_out(self, launch: Launch) -> Iterator[None]:
        try:
            yield
        except (EngineError, CannotError) as error:
            self.record.failed[launch.name] = str(error)
            self.launches.remove(launch)

    # ------------------------------------------------------------------ cells

    def run(self, cells: Sequence[Cell]) -> None:
        """Cells that share their rounds, so that they can be compared with each other."""
        costs = self.record.costs
        assert costs is not None
        results = [Result(c, cost(c, costs, 0)) for c in cells]
        steps = []
        for result in results:
            self.tick(result.cell.name, 0, self.rounds)
            steps.append(self._warm_up(result))
        live = [
            (r, n, m) for r, (n, m) in zip(results, steps, strict=True) if len(r.cannot) < len(self.engines)
        ]
        for result, n, _ in live:
            result.cost = cost(result.cell, costs, n)
            self.record.results.append(result)
        for i in range(max((m for _, _, m in live), default=0)):
            for result, n, rounds in live:
                if i < rounds:
                    self.tick(result.cell.name, i, rounds)
                    self._round(result, n, i)
        for name, engine in self.engines.items():
            self.record.peak[name] = engine.peak()

    def _warm_up(self, result: Result) -> tuple[int, int]:
        """Steps for a run, and rounds. Who cannot run the cell is noted."""
        slowest, steps = 0.0, FEWEST
        for name in [OURS, *(n for n in self.engines if n != OURS)]:
            try:
                seconds = self._ask(name, result.cell, steps)
            except (CannotError, EngineError) as error:
                result.cannot[name] = str(error)
                continue
            if name == OURS and result.cell.kind != "prefill":
                steps = min(MOST, max(FEWEST, round(SECONDS / max(seconds, 1e-9))))
            slowest = max(slowest, seconds * (1 if result.cell.kind == "prefill" else steps))
        return steps, max(2, min(self.rounds, int(LONGEST / max(slowest, 1e-9))))

    def _round(self, result: Result, steps: int, number: int) -> None:
        names = [n for n in self.engines if n not in result.cannot]
        if number % 2:
            names.reverse()  # nobody always comes first
        before: Limits = self.probe.measure(result.cost.n_bytes)
        for name in names:
            try:
                seconds = self._ask(name, result.cell, steps)
            except (CannotError, EngineError) as error:
                result.cannot[name] = str(error)
                continue
            after = self.probe.measure(result.cost.n_bytes)
            result.samples.setdefault(name, []).append(Sample(number, seconds, between(before, after)))
            before = after

    def _ask(self, name: str, cell: Cell, steps: int) -> float:
        return float(self.engines[name].ask(cell.kind, **asked(cell, steps)))

    # ------------------------------------------------------------------ where time goes

    def profile(self, cell: Cell) -> None:
        """Attribute the time of ours to the parts of its plan."""
        costs = self.record.costs
        assert costs is not None
        self.tick(f"profiling {cell.name}", 0, 1)
        ours = self.engines[OURS]
        seconds = self._ask(OURS, cell, FEWEST)
        steps = 1 if cell.kind == "prefill" else min(MOST, max(FEWEST, round(SECONDS / max(seconds, 1e-9))))
        n_bytes = cost(cell, costs, steps).n_bytes
        before = self.probe.measure(n_bytes)
        found = ours.ask("profile", what=asked(cell, steps), of=cell.kind, steps=steps)
        limits = between(before, self.probe.measure(n_bytes))
        parts = [Part(**p) for p in found["parts"]]
        verdicts = [judge(p, cell, costs, limits, found["seconds"]) for p in parts]
        self.record.profiles.append(Profile(cell, found["seconds"], limits, parts, verdicts))


def asked(cell: Cell, steps: int) -> dict[str, int]:
    """What a driver is told about a cell."""
    if cell.kind == "prefill":
        return {"n": cell.rows}
    if cell.kind == "decode":
        return {"batch": cell.rows, "context": cell.context, "tokens": steps}
    return {"n": cell.rows, "context": cell.context, "repeat": steps}
