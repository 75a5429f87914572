"""Which sublayers a model drafts best without: the search that Draft & Verify leaves to its user.

A set is worth what it makes of decoding. With `agree`, the share of places where the cut model's likeliest
token is the whole model's, and `share`, of the weights that it reads, that is the best over k of the tokens
that a draft of k brings, (1 - agree^(k+1)) / (1 - agree), over the time 1 + k share. Places are compared as
drafts see them: the text before is the whole model's rows. Where the paper asks a Bayesian optimiser for
milliseconds, this adds the sublayer that costs least, again and again: the same in every run and on a busy
machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pronghorn.companion import Companion, Part
from pronghorn.errors import RequestError
from pronghorn.kv.store import SeqKV
from pronghorn.llm import LLM
from pronghorn.model.arch import build_tape
from pronghorn.model.bind import bind
from pronghorn.model.sublayers import sublayers, without
from pronghorn.model.tape import Tape
from pronghorn.types import Ints, Rows

CHUNK = 256  # rows of a step
LONGEST = 16  # drafted tokens that are considered
WIDTH = 6  # sublayers tried at each step: those without which the model agrees most with itself
PATIENCE = 4  # steps without a better set before the search ends


@dataclass(frozen=True)
class Found:
    """layers: as `self-skip` takes them; agree, share: see above; gain: times as fast, if a step of a few
    rows costs what one row costs."""

    layers: str
    agree: float
    share: float
    gain: float

    @property
    def spec(self) -> str:
        return f"self-skip:layers={self.layers}"


def gain(agree: float, share: float) -> float:
    """The best over the length of a draft."""
    agree = min(agree, 1 - 1e-9)
    tokens = [(1 - agree ** (k + 1)) / (1 - agree) / (1 + k * share) for k in range(1, LONGEST + 1)]
    return max(tokens)


class Search:
    """A model's own choices at `places` places spread over texts, against which sets are held. best: the best
    set so far, also of a search that was cut short; None before the first. Raises `RequestError` for too
    little text."""

    def __init__(self, llm: LLM, texts: Sequence[Sequence[int]], places: int) -> None:
        self.engine, self.tensors = llm.engine, llm.checkpoint.tensors
        self.tape, self.formats = build_tape(llm.checkpoint.config), llm.methods.weight
        self.best: Found | None = None
        self.parts: list[Part] = []
        self._agree: dict[frozenset[str], float] = {}
        texts = [ids[: self.engine.bound.context] for ids in texts if len(ids) > 1]
        rows = sum(map(len, texts))
        if rows < 2 * places:
            raise RequestError(
                f"to compare at {places} places takes texts of {2 * places} tokens, and these have {rows}: "
                "give more text, or fewer places"
            )
        store = self.engine.store
        for ids in texts:
            kv = self._stored(ids)
            n = max(1, places * len(ids) // rows)
            for at in np.linspace(1, len(ids) - 1, n).astype(int):
                fork = store.fork(kv)
                store.cut(fork, int(at))
                self.parts.append(Part(fork, 0, [ids[at]]))
            kv.free()
        self.truth = self._likeliest(self.engine.runner)

    def run(self, tick: Callable[[int, int], None] = lambda done, total: None) -> Found:
        """Search. tick(done, total): sets tried, and how many there may come to be."""
        names = [f"{s.layer}{s.part}" for s in sublayers(self.tape)]
        most = len(names) + WIDTH * (len(names) - 1)

        def tried(*skip: str) -> float:
            tick(len(self._agree), most)
            return self._try(names, skip)

        alone = {name: tried(name) for name in names}
        left = sorted(names, key=lambda n: -alone[n])
        taken: list[str] = []
        worse = 0
        while left and worse < PATIENCE:
            had = self.best
            agree, name = max((tried(*taken, n), n) for n in left[:WIDTH])
            if agree < 0:
                break
            taken.append(name)
            left.remove(name)
            worse = 0 if self.best is not had or len(taken) == 1 else worse + 1
        assert self.best is not None
        return self.best

    def _try(self, names: list[str], skip: Sequence[str]) -> float:
        """`agree` of a set, or -1 where no attention would be left; it may be the best one."""
        key = frozenset(skip)
        if key not in self._agree:
            if all(f"{s.layer}a" in key for s in sublayers(self.tape) if s.part == "a"):
                self._agree[key] = -1.0
            else:
                agree, share = self.agree(skip), self.share(skip)
                self._agree[key] = agree
                now = Found("+".join(sorted(skip, key=names.index)), agree, share, gain(agree, share))
                if self.best is None or now.gain > self.best.gain:
                    self.best = now
        return self._agree[key]

    def agree(self, skip: Sequence[str]) -> float:
        runner: Any = self.engine.runner
        bound = bind(without(self.tape, skip), self.tensors, self.formats)
        cut = type(runner)(bound, self.engine.store, beside=[runner])
        return float((self._likeliest(cut) == self.truth).mean())

    def share(self, skip: Sequence[str]) -> float:
        """Of the weights that a token multiplies with."""
        sizes = [self._bytes(t) for t in (without(self.tape, skip), self.tape)]
        return sizes[0] / sizes[1]

    def _bytes(self, tape: Tape) -> int:
        mats = self.engine.bound.mats
        keys = {p.key for op in tape.ops if op.kind != "embed" for p in op.params if p.key in mats}
        return sum(mats.form(key).nbytes for key in keys)

    def _stored(self, ids: Sequence[int]) -> SeqKV:
        """The whole model's rows of a text."""
        store, runner = self.engine.store, self.engine.runner
        kv = store.new()
        for at in range(0, len(ids), CHUNK):
            part = np.array(ids[at : at + CHUNK], np.int32)
            n = len(part)
            pos = kv.next_pos + np.arange(n, dtype=np.int32)
            none = np.zeros(n, np.int32)
            runner.run(
                Rows(part, pos, pos + 1, none, np.arange(-1, n - 1, dtype=np.int32), none), [kv], False
            )
            runner.commit(np.arange(n, dtype=np.int32), *store.reserve(kv, n))
            store.extend(kv, pos)
        return kv

    def _likeliest(self, runner: Any) -> Ints:
        eye = Companion(runner, self.engine.bound.n_vocab, self.engine.tokenizer)
        out = []
        for at in range(0, len(self.parts), CHUNK):
            rows = eye._run(runner, self.parts[at : at + CHUNK])
            out += [int(r[0, : self.engine.tokenizer.n_vocab].argmax()) for r in rows]
        return np.array(out, np.int32)

    def close(self) -> None:
        for part in self.parts:
            part.kv.free()
