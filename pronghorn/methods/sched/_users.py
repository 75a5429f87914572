"""What `vtc` remembers of users: virtual token counters, and who was served what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pronghorn.seq import Seq

USERS = 4096  # users remembered, those with work apart


class Ledger:
    """Counters of users. prompt, answer: what a token of each is charged."""

    def __init__(self, prompt: float, answer: float) -> None:
        self.prompt, self.answer = prompt, answer
        self.counter: dict[str, float] = defaultdict(float)
        self.ran: dict[int, int] = defaultdict(int)  # sequence -> step that it last had rows in
        self._served: dict[int, tuple[Seq, int]] = {}  # sequences that started: new tokens charged
        self._queued: set[str] = set()  # users who waited after the last plan
        self._last = ""  # the last of whom nothing was left waiting
        self._step = 0

    def of(self, seq: Seq) -> float:
        return self.counter[seq.request.user]

    def settle(self, waiting: Sequence[Seq], running: Sequence[Seq]) -> None:
        """Charge what was produced since the last plan, and lift the users who come back."""
        for seq in running:  # branches start with their leader, whose prompt is theirs
            self._served.setdefault(seq.id, (seq, 0))
        for number, (seq, charged) in list(self._served.items()):
            if seq.n_new > charged:
                self.counter[seq.request.user] += self.answer * (seq.n_new - charged)
                self._served[number] = seq, seq.n_new
            if seq.finish:
                del self._served[number]
                self.ran.pop(number, None)
        users = {s.request.user for s in waiting if not s.counts.preempted}
        stayed = users & self._queued
        floor = min((self.counter[u] for u in stayed), default=self.counter[self._last])
        for user in users - stayed:
            self.counter[user] = max(self.counter[user], floor)

    def start(self, seq: Seq) -> None:
        """Charge a prompt; once, however often it is preempted."""
        if seq.id not in self._served:
            self._served[seq.id] = seq, 0
            self.counter[seq.request.user] += self.prompt * seq.n_prompt

    def close(self, waiting: Sequence[Seq], rows: Sequence[tuple[Seq, int]]) -> None:
        """The step is planned: these wait on, those have rows."""
        self._step += 1
        for seq, _ in rows:
            self.ran[seq.id] = self._step
        users = {s.request.user for s in waiting}
        for user in self._queued - users:
            self._last = user
        self._queued = users
        if len(self.counter) > USERS:  # names are the callers' to choose: whoever is idle is forgotten
            known = users | {self._last} | {s.request.user for s, _ in self._served.values()}
            for user in [u for u in self.counter if u not in known]:
                del self.counter[user]
