"""Which sublayers a model drafts best without: the search that Draft & Verify leaves to its user.

    from pronghorn.bench.skips import search
    found = search("./model", texts=[open("sample.txt").read()])
    print(found.layers)          # for --use self-skip:layers=...

A set is worth what it makes of decoding. With `agree`, the share of places where the cut model's likeliest
token is the whole model's, and `share`, of the weights that it reads, that is the best over k of the tokens
that a draft of k brings, (1 - agree^(k+1)) / (1 - agree), over the time 1 + k share. Places are compared as
drafts see them: the text before is the whole model's rows. Where the paper asks a Bayesian optimiser for
milliseconds, this adds the sublayer that costs least, again and again: the same in every run and on a busy
machine.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def gain(agree: float, share: float) -> float:
    """The best over the length of a draft."""
    agree = min(agree, 1 - 1e-9)
    tokens = [(1 - agree ** (k + 1)) / (1 - agree) / (1 + k * share) for k in range(1, LONGEST + 1)]
    return max(tokens)


def search(
    model: str, texts: Sequence[str], places: int = 256, backend: str = "native", threads: int = 0
) -> Found:
    """Compare at `places` places, spread over the texts. Raises `RequestError` for too little text."""
    llm = LLM(model, (), backend, threads, defaults=())
    try:
        found = _Search(llm, [llm.tokenizer.encode(t) for t in texts], places)
        try:
            return found.best()
        finally:
            found.close()
    finally:
        llm.close()


class _Search:
    def __init__(self, llm: LLM, texts: Sequence[list[int]], places: int) -> None:
        self.engine, self.tensors = llm.engine, llm.checkpoint.tensors
        self.tape = build_tape(llm.checkpoint.config)
        self.texts = [ids[: self.engine.bound.context] for ids in texts if len(ids) > 1]
        if sum(map(len, self.texts)) < 2 * places:
            raise RequestError(f"to compare at {places} places takes a text of {2 * places} tokens or more")
        store = self.engine.store
        self.parts: list[Part] = []
        rows = sum(map(len, self.texts))
        for ids in self.texts:
            kv = self._stored(ids)
            n = max(1, places * len(ids) // rows)
            for at in np.linspace(1, len(ids) - 1, n).astype(int):
                fork = store.fork(kv)
                store.cut(fork, int(at))
                self.parts.append(Part(fork, 0, [ids[at]]))
            kv.free()
        self.truth = self._likeliest(self.engine.runner)

    def _stored(self, ids: list[int]) -> SeqKV:
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

    def agree(self, skip: Sequence[str]) -> float:
        runner: Any = self.engine.runner
        bound = bind(without(self.tape, skip), self.tensors)
        more = (runner.n_threads,) if hasattr(runner, "n_threads") else ()
        cut = type(runner)(bound, self.engine.store, *more, beside=[runner])
        return float((self._likeliest(cut) == self.truth).mean())

    def share(self, skip: Sequence[str]) -> float:
        """Of the weights that a token multiplies with."""
        sizes = [self._bytes(t) for t in (without(self.tape, skip), self.tape)]
        return sizes[0] / sizes[1]

    def _bytes(self, tape: Tape) -> int:
        form = self.engine.bound.mats.form
        mats = self.engine.bound.mats
        keys = {p.key for op in tape.ops if op.kind != "embed" for p in op.params if p.key in mats}
        return sum(form(key).nbytes for key in keys)

    def best(self) -> Found:
        names = [f"{s.layer}{s.part}" for s in sublayers(self.tape)]
        alone = {name: self._alone(name) for name in names}
        left = sorted(names, key=lambda n: -alone[n])
        taken: list[str] = []
        best = Found("", 1.0, 1.0, gain(1.0, 1.0))
        worse = 0
        while left and worse < PATIENCE:
            tried = [(self._alone(*taken, n), n) for n in left[:WIDTH]]
            agree, name = max(tried)
            if agree < 0:
                break
            taken.append(name)
            left.remove(name)
            share = self.share(taken)
            worse += 1
            now = Found("+".join(sorted(taken, key=names.index)), agree, share, gain(agree, share))
            if now.gain > best.gain or not best.layers:
                best, worse = now, 0
        return best

    def _alone(self, *skip: str) -> float:
        """`agree`, or -1 where no attention would be left."""
        if all(f"{s.layer}a" in skip for s in sublayers(self.tape) if s.part == "a"):
            return -1.0
        return self.agree(skip)

    def close(self) -> None:
        for part in self.parts:
            part.kv.free()
