"""The engine's own thread: takes what callers hand in, steps, hands out what came of it.

Nobody else touches the engine. Jobs (start this, cancel that) come through a queue on which the thread
sleeps while there is nothing to do; all that are there are done before the next step. `put` on that queue
may be interrupted by itself, so that even a finalizer may cancel.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from pronghorn.calibrate.steps import calibrate
from pronghorn.errors import EngineError, PronghornError, RequestError, UnavailableError
from pronghorn.serve.live import Live
from pronghorn.serve.metrics import Metrics
from pronghorn.serve.receipt import Receipts, account
from pronghorn.serve.run import Run

if TYPE_CHECKING:
    from pronghorn.engine import Engine, Event
    from pronghorn.serve.wake import Bell

STRIKES = 3  # failed steps in a row after which the engine is given up


class Worker:
    """Runs an engine until `stop`. `reason` says why it cannot serve any more, "" while it can."""

    def __init__(self, engine: Engine, name: str, keep: int) -> None:
        self.engine = engine
        self.metrics = Metrics()
        self.live = Live(engine, name)
        self.receipts = Receipts(keep)
        self.reason = ""
        self.finished = False  # the thread takes no more jobs
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._gate = threading.Lock()  # a job is queued before the thread ends, or not at all
        self._runs: dict[int, Run] = {}  # by sequence id
        self._fresh: dict[int, Run] = {}  # by leader's id, those that no step has included yet
        self._preparing = 0  # accepted, not yet handed to the engine
        self._count = threading.Lock()
        self._prompt_rows = engine.prompt_rows  # that were counted
        self._strikes = 0
        self._deadline = float("inf")  # time.monotonic() at which what still runs is cancelled
        self._stopping = False
        self._calibrate = False
        self._thread = threading.Thread(target=self._main, name=f"pronghorn-{name}", daemon=True)

    # ------------------------------------------------------------------ from any thread

    def start(self, calibrate: bool) -> None:
        self._calibrate = calibrate
        self._thread.start()

    def admit(self, most: int) -> bool:
        """Count a new request among the waiting ones, unless there are `most`."""
        with self._count:
            if self._preparing + len(self.engine.waiting) >= most:
                return False
            self._preparing += 1
            return True

    def submit(self, run: Run, prepared: Any) -> None:
        """Hand in an admitted run: what `Engine.prepare` made of its request."""
        with self._gate:
            if not self.finished:
                self._inbox.put(lambda: self._start(run, prepared))
                return
        self.refuse(run, UnavailableError("the model was closed while the request waited"))

    def refuse(self, run: Run, error: Exception) -> None:
        """End an admitted run that does not get as far as the engine."""
        with self._count:
            self._preparing -= 1
        self._turn_away(run, error)

    def _turn_away(self, run: Run, error: Exception) -> None:
        self.metrics.finished["cancelled" if run.dropped else "refused"] += 1
        run.end(None if run.dropped else error)
        run.bell.ring()

    def drop(self, run: Run) -> None:
        """Nobody wants it any more: its pages are free before the next step."""
        run.dropped = True
        self._inbox.put(lambda: self._cancel([run]))

    def look(self) -> dict[str, Any]:
        """The last photograph; a newer one is on its way when it is old."""
        now = time.monotonic()
        self.live.asked = now
        if self.live.due(now):
            self._inbox.put(self._photograph)
        return self.live.last

    @property
    def queue_length(self) -> int:
        return self._preparing + len(self.engine.waiting)

    @property
    def idle(self) -> bool:
        return not self._runs and not self._preparing

    def stop(self, drain: float) -> None:
        """Finish what runs, cancel what is left after `drain` seconds, free everything held, end."""

        def job() -> None:
            self._stopping, self._deadline = True, time.monotonic() + drain

        self._inbox.put(job)

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    # ------------------------------------------------------------------ the thread

    def _main(self) -> None:
        self._photograph()
        if self._calibrate:
            calibrate(self.engine)
        while not (self._stopping and (self.idle or time.monotonic() >= self._deadline)):
            self._turn()
        with self._gate:
            self.finished = True
        self._jobs()
        self._cancel(self._every())
        self.engine.close()

    def _turn(self) -> None:
        try:
            self._jobs()
            if self.engine.busy and not self.reason:
                self._step()
        except Exception as e:  # a mistake of this file or of a method: nobody may wait for ever
            self._give_up(f"serving failed: {_failure(e)}")

    def _jobs(self) -> None:
        """Do what has been handed in; sleep until there is something when the engine is idle."""
        wait = 0.0 if (self.engine.busy and not self.reason) or self.finished else None
        if wait == 0.0 and self._inbox.empty():
            return
        if wait is None and self._stopping:
            wait = min(max(self._deadline - time.monotonic(), 0.0), 60.0)
        while True:
            try:
                job = self._inbox.get(block=wait != 0.0, timeout=wait)
            except Empty:
                return
            job()
            wait = 0.0

    def _start(self, run: Run, prepared: Any) -> None:
        with self._count:
            self._preparing -= 1
        if run.dropped or self.reason or self.finished:
            self._turn_away(run, UnavailableError(self.reason or "the model is being closed"))
            return
        try:
            run.seqs = self.engine.submit(prepared)
        except Exception as e:
            self._turn_away(run, e if isinstance(e, PronghornError) else _failure(e))
            return
        run.queued = time.perf_counter()
        self._fresh[run.seqs[0].id] = run
        for seq in run.seqs:
            self._runs[seq.id] = run
        self.live.totals["requests"] += 1
        run.bell.mark(run.box, urgent=True)  # whoever waits for it to be accepted
        run.bell.ring()

    def _cancel(self, runs: Iterable[Run]) -> None:
        for run in runs:
            for seq in run.seqs:
                self.engine.cancel(seq)
            if run.seqs and run.seqs[0].id in self._runs:
                self._settle(run, time.perf_counter())
                self._ring([run.bell])

    def _every(self) -> list[Run]:
        return list(dict.fromkeys(self._runs.values()))

    def _step(self) -> None:
        began = time.perf_counter()
        try:
            events = self.engine.step()
        except Exception as error:
            self._stumble(error)
            return
        now = time.perf_counter()
        self._strikes = 0
        self._count_step(events, began)
        bells: dict[Bell, None] = {}
        ended = []
        for e in events:
            run = self._runs.get(e.seq.id)
            if run is None:
                continue
            self._deliver(run, e, now)
            bells[run.bell] = None
            if e.finish:
                ended.append(run)
        for run in dict.fromkeys(ended):
            broken = any(s.finish == "error" for s in run.seqs)
            if broken:  # its other branches have nobody left to answer
                for seq in run.seqs:
                    self.engine.cancel(seq)
            if run.done:
                self._settle(run, now)
        self._ring(bells)
        if self.live.due(time.monotonic()):
            self._photograph()

    def _deliver(self, run: Run, event: Event, now: float) -> None:
        n, branch = len(event.tokens), event.seq.branch
        urgent = False
        if n:
            before = run.heard.get(branch)
            run.heard[branch] = now
            if before is not None:
                self.metrics.between_tokens.observe((now - before) / n, n)
            elif not run.first:
                run.first, urgent = now, True
                self.metrics.first_token.observe(now - run.submitted)
        run.hear(event)
        if not run.quiet:
            run.bell.mark(run.box, urgent or bool(event.finish))

    def _count_step(self, events: list[Event], began: float) -> None:
        engine, m = self.engine, self.metrics
        if self._fresh:
            for seq in [*engine.running, *(e.seq for e in events)]:
                run = self._fresh.pop(seq.id, None)
                if run is not None:
                    run.begun = began
                    m.queue_time.observe(began - run.queued)
        prompt = engine.prompt_rows - self._prompt_rows
        self._prompt_rows += prompt
        tokens = sum(len(e.tokens) for e in events)
        last = engine.last
        m.steps += 1
        m.step_time.observe(last.seconds)
        m.step_rows.observe(last.rows)
        m.kv_read_bytes += last.read_bytes
        m.new_tokens += tokens
        m.prompt_tokens += prompt
        self.live.step(time.monotonic(), last, tokens, prompt)

    def _settle(self, run: Run, now: float) -> None:
        """The end of a run: answers, receipt, counters."""
        run.ended = now
        engine, m = self.engine, self.metrics
        for seq in run.seqs:
            self._runs.pop(seq.id, None)
        self._fresh.pop(run.seqs[0].id, None)
        error = self._verdict(run)
        if error is None:
            chosen = run.choose()
            run.answers = [run.answer(engine, seq) for seq in chosen]
            run.show_chosen(chosen)
        full = [engine.store.full_bytes(max(len(s.tokens) - 1, 0)) for s in run.seqs]
        run.receipt = {
            "id": run.id,
            "model": self.live.model,
            "created": run.created,
            "n": run.seqs[0].request.n,
            "finish": _finish(run),
            "queue_seconds": (run.begun or now) - run.submitted,
            "first_token_seconds": run.first - run.submitted if run.first else None,
            "seconds": now - run.submitted,
            **account(run.seqs, run.seqs[0].methods, full),
        }
        self.receipts.put(run.receipt)
        m.finished[run.receipt["finish"]] += 1
        m.request.observe(now - run.submitted)
        for seq in run.seqs:
            c = seq.counts
            for who, (drafted, accepted) in c.drafters.items():
                had = m.drafters.get(who, (0, 0))
                m.drafters[who] = had[0] + drafted, had[1] + accepted
            m.forced += c.forced
            m.preempted += c.preempted
            if c.steps:
                m.accepted_length.observe(seq.n_new / c.steps)
        m.reused_tokens += run.seqs[0].counts.reused
        run.end(error)

    def _verdict(self, run: Run) -> BaseException | None:
        broken = next((s for s in run.seqs if s.finish == "error"), None)
        if broken is not None:
            return RequestError(broken.error)
        if any(s.finish == "cancelled" for s in run.seqs):
            if run.dropped:
                return None
            if any(s.torn for s in run.seqs):
                return EngineError("a step that the request took part in failed: ask again")
            return UnavailableError("the request was cancelled: the model is being closed")
        return None

    def _stumble(self, error: Exception) -> None:
        """A step failed: what took part in it is over, the rest goes on, unless that happens again and
        again."""
        self.metrics.failed_steps += 1
        self._strikes += 1
        if self._strikes >= STRIKES:
            self._give_up(f"the engine failed {STRIKES} times in a row, last with: {_failure(error)}")
            return
        now = time.perf_counter()
        over = [run for run in self._every() if any(s.finish == "cancelled" for s in run.seqs)]
        for run in over:
            for seq in run.seqs:
                self.engine.cancel(seq)
            self._settle(run, now)
        self._ring({run.bell: None for run in over})

    def _give_up(self, reason: str) -> None:
        """Serve no more: every request ends with the reason, whatever state it is in."""
        self.reason = reason
        runs = self._every()
        self._runs.clear()
        self._fresh.clear()
        for run in runs:
            self.metrics.finished["error"] += 1
            run.end(EngineError(reason))
        self._ring({run.bell: None for run in runs})
        for seq in [*self.engine.running, *self.engine.waiting]:
            seq.torn = True
            self.engine.cancel(seq)

    def _ring(self, bells: Iterable[Bell]) -> None:
        for bell in bells:
            if not bell.ring():  # its loop is closed
                for run in self._every():
                    if run.bell is bell:
                        self.drop(run)

    def _photograph(self) -> None:
        self.live.photograph(self._every(), self._preparing)


def _finish(run: Run) -> str:
    """How a run ended, in a word: its worst branch."""
    found = {s.finish for s in run.seqs}
    return next(f for f in ("error", "cancelled", "length", "stop") if f in found)


def _failure(error: Exception) -> EngineError:
    return EngineError(f"{type(error).__name__}: {error}")
