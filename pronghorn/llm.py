"""The Python face: `LLM(model, use=[...])` with `generate`, `stream`, `chat`, `score`, `embed`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.compose import Composition, Facts, check, compose, describe, explain, name_of
from pronghorn.errors import MethodError, RequestError
from pronghorn.seq import Request, Seq

if TYPE_CHECKING:
    from pronghorn.engine import Engine
    from pronghorn.model.checkpoint import Checkpoint
    from pronghorn.model.tokenizer import Tokenizer

BUNDLED = Path(__file__).parent / "bundled"
DEFAULT_MODEL = "pronghorn-tiny"
DEFAULT_USE = ("match", "fcfs", "prefix", "prompt-lookup")
BACKENDS = ("native", "ref", "ref64", "torch", "cuda")

THREADS_MAX = 1024  # of the native runner


@dataclass(frozen=True)
class Stats:
    """How an answer came about: the receipt.

    Times in seconds. first: submission to first token; rate: new tokens after the first per second;
    accepted_length: new tokens per step; kv_bytes: held at the end; kv_full: what the plain path would
    have held.
    """

    prompt_tokens: int
    new_tokens: int
    reused_tokens: int
    seconds: float
    first: float
    rate: float
    steps: int
    drafted: int
    accepted: int
    accepted_length: float
    kv_bytes: int
    kv_full: int
    guarantee: str
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """A part of an answer as it streams. drafted: for each token, whether a draft had it right."""

    text: str
    tokens: tuple[int, ...]
    drafted: tuple[bool, ...]


@dataclass(frozen=True)
class Answer:
    """finish: "stop" (end of text or stop string) or "length". logprobs: of each new token
    when asked for."""

    text: str
    tokens: tuple[int, ...]
    finish: str
    stats: Stats
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Options:
    """Options of one request; `LLM.generate` and the like take them as keywords.

    temperature 0 is greedy. truncate: cut a prompt that exceeds the context at its start instead of
    refusing it.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    truncate: bool = False


@dataclass
class _Run:
    """A request under way."""

    seqs: list[Seq]
    start: float
    first: float = 0.0
    text: dict[int, str] = field(default_factory=dict)


def find_model(model: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """A bundled model's folder for its name, anything else unchanged."""
    bundled = BUNDLED / str(model)
    return bundled if os.sep not in str(model) and bundled.is_dir() else model


class LLM:
    """A model with the methods it runs under.

    model: name of a bundled model, folder, .gguf or .bin file, or a hub name "org/name".
    use: methods as on the command line, "name:key=value,..."; they replace the `defaults` of their slots.
    backend: "native" (C++), "ref" (NumPy float32), "ref64" (the oracle), "torch", "cuda".
    threads: 0 for all cores. kv_bytes: memory for KV, 0 for a quarter of what is free.
    Raises `PronghornError` with a cause and a way out.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        use: Sequence[str | Any] = (),
        backend: str = "native",
        threads: int = 0,
        kv_bytes: int = 0,
        defaults: Sequence[str | Any] = DEFAULT_USE,
    ) -> None:
        from pronghorn.model.arch import build_tape
        from pronghorn.model.checkpoint import load_checkpoint, validate
        from pronghorn.model.tokenizer import load_tokenizer

        self.checkpoint: Checkpoint = load_checkpoint(find_model(model))
        self.methods: Composition = compose(use, defaults)
        tape = build_tape(self.checkpoint.config)
        validate(self.checkpoint, tape.expected())
        self.facts = Facts(tape.n_layers, tape.context, tape.hard_context, any(r.varies for r in tape.ropes))
        reasons = check(self.methods, self.facts)
        if reasons:
            raise MethodError("this combination cannot work: " + "; ".join(reasons))
        self.tokenizer: Tokenizer = load_tokenizer(self.checkpoint.path, self.checkpoint.gguf_metadata)
        self.engine: Engine = make_engine(
            self.checkpoint, tape, self.methods, self.tokenizer, backend, threads, kv_bytes
        )
        self.backend = backend

    # ------------------------------------------------------------------ text

    def generate(self, prompts: str | Sequence[str], **options: Any) -> Answer | list[Answer]:
        """Continue one prompt, or several in one batch. Keywords: see `Options`."""
        opts = _options(options)
        many = [prompts] if isinstance(prompts, str) else list(prompts)
        prompts_ids = [self.tokenizer.encode(p) for p in many]
        runs: list[_Run] = []
        try:
            runs += (self._submit(ids, opts) for ids in prompts_ids)
        except RequestError:  # one bad prompt refuses the batch; the others must not stay queued
            self._cancel(runs)
            raise
        self._finish(runs)
        answers = [self._answer(r) for r in runs]
        return answers[0] if isinstance(prompts, str) else answers

    def stream(self, prompt: str, **options: Any) -> Iterator[Piece | Answer]:
        """Pieces as they come, then the whole answer. Closing the iterator cancels the request."""
        yield from self._stream(self.tokenizer.encode(prompt), _options(options))

    def chat(self, messages: Sequence[dict[str, Any]], **options: Any) -> Answer:
        """Answer a conversation: [{"role": "user", "content": "..."}]."""
        run = self._submit(self.tokenizer.chat(list(messages)), _options(options))
        self._finish([run])
        return self._answer(run)

    def chat_stream(self, messages: Sequence[dict[str, Any]], **options: Any) -> Iterator[Piece | Answer]:
        yield from self._stream(self.tokenizer.chat(list(messages)), _options(options))

    # ------------------------------------------------------------------ numbers

    def score(self, text: str) -> list[float]:
        """Natural-log probability of each token of `text` after the first, under the model at
        temperature 1 and the KV methods in use."""
        ids = tuple(self.tokenizer.encode(text))
        (seqs,) = self.engine.run([Request(ids, max_tokens=0, score=True)])
        return seqs[0].logprobs

    def embed(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """(n, width) mean of the last layer's normalised states over each text, unit length."""
        from pronghorn.run.embed import embed

        many = [texts] if isinstance(texts, str) else list(texts)
        return embed(self.engine, [self.tokenizer.encode(t) for t in many])

    def explain(self) -> str:
        """What runs and why."""
        return explain(self.methods, self.facts)

    def close(self) -> None:
        self.engine.close()

    # ------------------------------------------------------------------ inside

    def _submit(self, ids: list[int], o: Options) -> _Run:
        room = self.engine.bound.context - 1
        if len(ids) > room and o.truncate:
            ids = ids[-room:]
        request = Request(
            tuple(ids), o.max_tokens, o.temperature, o.seed, o.stop, o.ignore_eos,
            o.logprobs or self.methods.search.branches(Request(tuple(ids))) > 1,
        )  # fmt: skip
        return _Run(self.engine.submit(request), time.perf_counter())

    def _finish(self, runs: list[_Run]) -> None:
        try:
            while any(not s.finish for r in runs for s in r.seqs):
                self._step(runs)
        finally:
            self._cancel(runs)

    def _cancel(self, runs: list[_Run]) -> None:
        for r in runs:
            for s in r.seqs:
                self.engine.cancel(s)

    def _step(self, runs: list[_Run]) -> dict[int, Piece]:
        pieces = {}
        for e in self.engine.step():
            for r in runs:
                if e.seq in r.seqs:
                    r.first = r.first or (time.perf_counter() if e.tokens else 0.0)
                    r.text[e.seq.id] = r.text.get(e.seq.id, "") + e.text
                    pieces[e.seq.id] = Piece(e.text, tuple(e.tokens), tuple(e.drafted))
        return pieces

    def _stream(self, ids: list[int], o: Options) -> Iterator[Piece | Answer]:
        run = self._submit(ids, o)
        single = len(run.seqs) == 1
        try:
            while any(not s.finish for s in run.seqs):
                for piece in self._step([run]).values():
                    if single:  # a search chooses at the end
                        yield piece
        finally:
            for s in run.seqs:
                self.engine.cancel(s)
        answer = self._answer(run)
        if not single:
            yield Piece(answer.text, answer.tokens, (False,) * len(answer.tokens))
        yield answer

    def _answer(self, run: _Run) -> Answer:
        best = run.seqs[self.methods.search.choose(run.seqs)[0]]
        if best.error:
            raise RequestError(best.error)
        now, c, n = time.perf_counter(), best.counts, best.n_new
        first = (run.first or now) - run.start
        after = now - run.start - first
        stats = Stats(
            prompt_tokens=best.n_prompt, new_tokens=n, reused_tokens=c.reused,
            seconds=now - run.start, first=first, rate=(n - 1) / after if n > 1 and after > 0 else 0.0,
            steps=c.steps, drafted=c.drafted, accepted=c.accepted,
            accepted_length=n / c.steps if c.steps else 0.0, kv_bytes=best.kv_bytes,
            kv_full=self.engine.store.full_bytes(len(best.tokens)),
            guarantee=self.methods.guarantee.value,
            methods=tuple(describe(m) for _, m in self.methods.each() if name_of(m)),
        )  # fmt: skip
        logprobs = tuple(best.logprobs) if best.request.logprobs else ()
        return Answer(run.text.get(best.id, ""), tuple(best.new), best.finish, stats, logprobs)


def _options(given: dict[str, Any]) -> Options:
    import difflib

    known = list(Options.__dataclass_fields__)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise RequestError(f"no option called {key!r}{hint}")
    if isinstance(given.get("stop"), str):
        given = {**given, "stop": (given["stop"],)}
    if isinstance(given.get("stop"), list):
        given = {**given, "stop": tuple(given["stop"])}
    kinds: dict[type, type] = {int: Integral, float: Real}
    for key, value in given.items():
        kind = type(getattr(Options, key))
        fits = isinstance(value, kinds.get(kind, kind))
        if not fits or (key == "stop" and not all(isinstance(s, str) for s in value)):
            raise RequestError(f"option {key} is {value!r:.80}, which is not of the kind {kind.__name__}")
    return Options(**given)


def free_memory() -> int:
    """Bytes the system says are available."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def make_engine(
    checkpoint: Checkpoint,
    tape: Any,
    methods: Composition,
    tokenizer: Tokenizer,
    backend: str = "native",
    threads: int = 0,
    kv_bytes: int = 0,
    clip: bool = True,
) -> Engine:
    """Bind, lay out the store, start the runner."""
    from pronghorn.engine import Engine
    from pronghorn.kv.store import Store
    from pronghorn.model.bind import bind

    tokenizer.widen(tape.n_vocab)
    skips = methods.gate.skips(tape.n_layers)
    bound = bind(tape, checkpoint.tensors, methods.weight, skips, methods.taps)
    if not 0 <= threads <= THREADS_MAX:
        raise MethodError(f"threads is {threads}: use 0 for all cores, or 1 to {THREADS_MAX}")
    if backend not in BACKENDS:
        raise MethodError(f"no backend called {backend!r}; known: {', '.join(BACKENDS)}")
    ops = _ops(backend)
    own = bound.dtype if backend == "native" else ops.name
    dtype = methods.kvfmt.open if methods.kvfmt.open != "auto" else own
    store = Store(
        ops, bound.n_layers, bound.n_kv, bound.head_dim, dtype, methods.kvfmt, methods.select,
        methods.rows, list(bound.kv_ropes),
    )  # fmt: skip
    runner: Any
    if backend == "native":
        from pronghorn.run.native import NativeRunner

        runner = NativeRunner(bound, store, threads)
    else:
        from pronghorn.run.ref import RefRunner

        runner = RefRunner(bound, store)
    row = store.full_bytes(1024) / 1024
    kv_rows = int((kv_bytes or free_memory() // 4) / row)
    eos = sorted({*checkpoint.eos, *tokenizer.eos})
    return Engine(bound, runner, store, methods, tokenizer, kv_rows, eos, clip)


def _ops(backend: str) -> Any:
    from pronghorn.ops.ref import Ops

    if backend in ("torch", "cuda"):
        try:
            import torch
        except ImportError:
            raise MethodError(
                f"backend {backend!r} needs PyTorch: install it with `pip install pronghorn[gpu]`"
            ) from None
        if backend == "cuda" and not torch.cuda.is_available():
            raise MethodError("backend 'cuda' needs a CUDA device, and PyTorch finds none here")
        return Ops("float32", torch, "cuda" if backend == "cuda" else "cpu")
    return Ops("float64" if backend == "ref64" else "float32")
