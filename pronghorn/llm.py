"""The Python face: `LLM(model, use=[...])` with `generate`, `stream`, `chat`, `score`, `embed`."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.compose import Composition, Facts, check, compose, describe, explain, name_of
from pronghorn.errors import MethodError, RequestError
from pronghorn.seq import Request, Seq, Top
from pronghorn.types import Origin

if TYPE_CHECKING:
    from pronghorn.engine import Engine
    from pronghorn.model.checkpoint import Checkpoint
    from pronghorn.model.tokenizer import Tokenizer

BUNDLED = Path(__file__).parent / "bundled"
DEFAULT_MODEL = "pronghorn-tiny"
DEFAULT_USE = ("match", "fcfs", "prefix", "auto")
BACKENDS = ("native", "ref", "ref64", "torch", "cuda")

THREADS_MAX = 1024  # of the native runner


@dataclass(frozen=True)
class Stats:
    """How an answer came about: the receipt.

    Times in seconds. first: submission to first token; rate: new tokens after the first step's per
    second; drafters: tokens drafted and accepted, by who drafted them;
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
    drafters: dict[str, tuple[int, int]]
    accepted_length: float
    kv_bytes: int
    kv_full: int
    guarantee: str
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """A part of an answer as it streams. origins: where each token came from."""

    text: str
    tokens: tuple[int, ...]
    origins: tuple[Origin, ...]


@dataclass(frozen=True)
class Answer:
    """finish: "stop" (end of text or stop string) or "length". logprobs, and tops (the likeliest tokens
    with theirs): of each new token when asked for. more: the other answers, where `n` asked for several."""

    text: str
    tokens: tuple[int, ...]
    finish: str
    stats: Stats
    logprobs: tuple[float, ...] = ()
    tops: tuple[Top, ...] = ()
    more: tuple[Answer, ...] = ()


@dataclass(frozen=True)
class Options:
    """Options of one request; `LLM.generate` and the like take them as keywords.

    temperature 0 is greedy. truncate: cut a prompt that exceeds the context at its start instead of
    refusing it, so that the answer has room too (half of the context at most). n: answers to the prompt.
    top_logprobs: alternatives kept for each token, with logprobs. use: methods of this request, as specs or
    instances. priority: higher goes first; deadline: seconds from now until the answer should be there, 0
    for none; user: whose share it counts to. These three are for schedulers that look at them.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    truncate: bool = False
    n: int = 1
    top_logprobs: int = 0
    use: tuple[Any, ...] = ()
    priority: int = 0
    deadline: float = 0.0
    user: str = ""

    def request(self, ids: Sequence[int]) -> Request:
        return Request(
            tuple(ids), self.max_tokens, self.temperature, self.seed, self.stop, self.ignore_eos,
            self.logprobs or self.top_logprobs > 0, top=self.top_logprobs, n=self.n, priority=self.priority,
            deadline=time.monotonic() + self.deadline if self.deadline > 0 else math.inf, user=self.user,
            use=self.use,
        )  # fmt: skip


@dataclass(eq=False)
class _Run:
    """A request under way."""

    seqs: list[Seq]
    start: float
    first: float = 0.0
    end: float = 0.0
    burst: dict[int, int] = field(default_factory=dict)  # tokens of each sequence's first step
    text: dict[int, str] = field(default_factory=dict)
    pieces: deque[Piece] = field(default_factory=deque)  # not yet given to a stream

    @property
    def done(self) -> bool:
        return all(s.finish for s in self.seqs)

    def ranked(self) -> list[Seq]:
        """Its sequences, best first."""
        return [self.seqs[i] for i in self.seqs[0].methods.search.choose(self.seqs)]


class Stream:
    """Pieces of an answer as they come; the whole of it in `answer` once they are through.

    Closing a stream early, or leaving its `with` block, cancels the request. Streams of one `LLM` may be
    read in turns: they share its batch.
    """

    def __init__(self, llm: LLM, run: _Run) -> None:
        self._llm, self._run = llm, run
        self._answer: Answer | None = None

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        try:
            while not self._run.pieces:
                if self._answer is not None or self._run.done:
                    self._close()
                    raise StopIteration
                self._llm._step()
            return self._run.pieces.popleft()
        except BaseException:
            self.close()
            raise

    @property
    def answer(self) -> Answer:
        """The whole answer; runs the request to its end if it has not come there."""
        for _ in self:
            pass
        if self._answer is None:
            raise RequestError("the stream was closed before its end: there is no answer")
        return self._answer

    def _close(self) -> None:
        if self._answer is None and self._run in self._llm._active:
            self._llm._active.remove(self._run)
            self._answer = self._llm._answer(self._run)

    def close(self) -> None:
        """Cancel what is still running."""
        self._llm._drop([self._run])

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find_model(model: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """A bundled model's folder for its name, anything else unchanged."""
    bundled = {p.name: p for p in BUNDLED.iterdir() if p.is_dir()}
    return bundled.get(str(model), model)


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
        from pronghorn.calibrate.steps import calibrate_drafts
        from pronghorn.model.arch import build_tape
        from pronghorn.model.checkpoint import load_checkpoint, validate
        from pronghorn.model.tokenizer import load_tokenizer

        self.checkpoint: Checkpoint = load_checkpoint(find_model(model))
        self.methods: Composition = compose(use, defaults)
        tape = build_tape(self.checkpoint.config)
        validate(self.checkpoint, tape.expected())
        self.facts = Facts(
            tape.n_layers, tape.context, tape.hard_context, any(r.varies for r in tape.ropes),
            self.methods.models,
        )  # fmt: skip
        reasons = check(self.methods, self.facts)
        if reasons:
            raise MethodError("this combination cannot work: " + "; ".join(reasons))
        self.checkpoint.tensors.fetch()
        self.tokenizer: Tokenizer = load_tokenizer(self.checkpoint.path, self.checkpoint.gguf_metadata)
        self.checkpoint = replace(self.checkpoint, gguf_metadata={})  # a vocabulary's texts, read now
        self.engine: Engine = make_engine(
            self.checkpoint, tape, self.methods, self.tokenizer, backend, threads, kv_bytes
        )
        if self.methods.draft.traits.prices:
            calibrate_drafts(self.engine)
        self.backend = backend
        self._active: list[_Run] = []

    # ------------------------------------------------------------------ text

    def generate(self, prompts: str | Sequence[str], **options: Any) -> Answer | list[Answer]:
        """Continue one prompt, or several in one batch. Keywords: see `Options`."""
        many = [prompts] if isinstance(prompts, str) else list(prompts)
        answers = self._run([self.tokenizer.encode(p) for p in many], make_options(options))
        return answers[0] if isinstance(prompts, str) else answers

    def stream(self, prompt: str, **options: Any) -> Stream:
        """Continue a prompt piece by piece."""
        return Stream(self, self._submit(self.tokenizer.encode(prompt), make_options(options)))

    def chat(self, messages: Sequence[dict[str, Any]], **options: Any) -> Answer:
        """Answer a conversation: [{"role": "user", "content": "..."}]."""
        return self._run([self.tokenizer.chat(list(messages))], make_options(options))[0]

    def chat_stream(self, messages: Sequence[dict[str, Any]], **options: Any) -> Stream:
        """Answer a conversation piece by piece."""
        return Stream(self, self._submit(self.tokenizer.chat(list(messages)), make_options(options)))

    # ------------------------------------------------------------------ numbers

    def score(self, text: str) -> list[float]:
        """Natural-log probability of each token of `text` after the first, under the model at
        temperature 1 and the KV methods in use."""
        ids = tuple(self.tokenizer.encode(text))
        (seqs,) = self.engine.run([Request(ids, max_tokens=0, score=True)])
        return seqs[0].prompt_logprobs

    def embed(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """(n, width) mean of the last layer's normalised states over each text, unit length."""
        many = [texts] if isinstance(texts, str) else list(texts)
        asked = [Request(tuple(self.tokenizer.encode(t)), max_tokens=0, embed=True) for t in many]
        return np.stack([embedding(seqs[0]) for seqs in self.engine.run(asked)])

    def explain(self) -> str:
        """What runs and why."""
        return explain(self.methods, self.facts)

    def close(self) -> None:
        self.engine.close()

    # ------------------------------------------------------------------ inside

    def request(self, ids: list[int], o: Options) -> Request:
        """What `o` asks the engine for, for a prompt of `ids`."""
        return o.request(self._truncated(ids, o.max_tokens) if o.truncate else ids)

    def _submit(self, ids: list[int], o: Options) -> _Run:
        run = _Run(self.engine.submit(self.request(ids, o)), time.perf_counter())
        self._active.append(run)
        return run

    def _truncated(self, ids: list[int], max_tokens: int) -> list[int]:
        """A prompt past the context cut at its start (a begin token stays), so that the answer fits."""
        context = self.engine.bound.context
        if len(ids) < context:
            return ids
        room = max(context - max_tokens, context // 2)
        begin = ids[: int(ids[0] == self.tokenizer.bos)]
        return begin + ids[len(begin) - room :]

    def _run(self, prompts: list[list[int]], o: Options) -> list[Answer]:
        runs: list[_Run] = []
        try:
            for ids in prompts:
                runs += [self._submit(ids, o)]  # one by one: a refusal must not strand the earlier ones
            while not all(r.done for r in runs):
                self._step()
            return [self._answer(r) for r in runs]
        finally:
            self._drop(runs)

    def _drop(self, runs: list[_Run]) -> None:
        """Forget runs, and cancel what has not ended."""
        for run in runs:
            for seq in run.seqs:
                self.engine.cancel(seq)
            if run in self._active:
                self._active.remove(run)

    def _step(self) -> None:
        """One step of the engine; what came out goes to the runs it belongs to."""
        events = self.engine.step()
        now = time.perf_counter()
        owner = {seq.id: run for run in self._active for seq in run.seqs}
        for e in events:
            run = owner.get(e.seq.id)
            if run is None:
                continue
            run.first = run.first or (now if e.tokens else 0.0)
            run.burst.setdefault(e.seq.id, len(e.tokens))
            run.text[e.seq.id] = run.text.get(e.seq.id, "") + e.text
            if len(run.seqs) == 1 and e.tokens:
                run.pieces.append(Piece(e.text, tuple(e.tokens), tuple(e.origins)))
        for run in {id(r): r for e in events if (r := owner.get(e.seq.id))}.values():
            if run.done:
                run.end = now
                if len(run.seqs) > 1:  # a search chooses at the end
                    best = run.ranked()[0]
                    run.pieces.append(Piece(run.text.get(best.id, ""), tuple(best.new), tuple(best.origins)))

    def _answer(self, run: _Run) -> Answer:
        first, *more = [self._one(run, seq) for seq in run.ranked()[: run.seqs[0].request.n]]
        return replace(first, more=tuple(more))

    def _one(self, run: _Run, seq: Seq) -> Answer:
        if seq.error:
            raise RequestError(seq.error)
        if seq.finish == "cancelled":
            raise RequestError("the request was cancelled: a step that it shared was cut short; ask again")
        first = (run.first or run.end) - run.start
        later = seq.n_new - run.burst.get(seq.id, 0)
        stats = receipt(self.engine, seq, run.end - run.start, first, later)
        return Answer(
            run.text.get(seq.id, ""), tuple(seq.new), seq.finish, stats,
            tuple(seq.logprobs) if seq.request.logprobs else (), tuple(seq.tops),
        )  # fmt: skip


def receipt(engine: Engine, seq: Seq, seconds: float, first: float, later: int) -> Stats:
    """How an answer came about. seconds: in all; first: to its first token; later: tokens after the first
    step's."""
    c, n, after = seq.counts, seq.n_new, seconds - first
    return Stats(
        prompt_tokens=seq.n_prompt, new_tokens=n, reused_tokens=c.reused, seconds=seconds, first=first,
        rate=later / after if later and after > 0 else 0.0, steps=c.steps, drafted=c.drafted,
        accepted=c.accepted, drafters=dict(c.drafters),
        accepted_length=n / c.steps if c.steps else 0.0, kv_bytes=seq.kv_bytes,
        kv_full=engine.store.full_bytes(len(seq.tokens) - 1), guarantee=seq.methods.guarantee.value,
        methods=tuple(describe(m) for _, m in seq.methods.each() if name_of(m)),
    )  # fmt: skip


def embedding(seq: Seq) -> NDArray[np.float32]:
    """(width,) mean of the head's input over a prompt's tokens, scaled to unit length."""
    mean = seq.pooled / max(seq.n_pooled, 1)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)


def make_options(given: dict[str, Any]) -> Options:
    """Options from keywords. Raises `RequestError` for an unknown one, or a value of the wrong kind."""
    import difflib

    known = list(Options.__dataclass_fields__)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise RequestError(f"no option called {key!r}{hint}")
    for key in ("stop", "use"):
        if isinstance(given.get(key), str):
            given = {**given, key: (given[key],)}
        if isinstance(given.get(key), list):
            given = {**given, key: tuple(given[key])}
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
    from pronghorn.datastore import Datastore
    from pronghorn.engine import Engine
    from pronghorn.fingerprint import fingerprint, of_model
    from pronghorn.kv.store import Store
    from pronghorn.model.bind import bind
    from pronghorn.opening import Home, Model, open_companions

    stores = {path: Datastore(path) for path in methods.stores}
    for held in stores.values():
        held.check(tokenizer, tape.n_vocab)
    skips = methods.gate.skips(tape.n_layers)
    bound = bind(tape, checkpoint.tensors, methods.weight, skips, methods.taps)
    if not 0 <= threads <= THREADS_MAX:
        raise MethodError(f"threads is {threads}: use 0 for all cores, or 1 to {THREADS_MAX}")
    if backend not in BACKENDS:
        raise MethodError(f"no backend called {backend!r}; known: {', '.join(BACKENDS)}")
    ops = _ops(backend)

    def own(bound: Any) -> str:
        return str(bound.dtype if backend == "native" else ops.name)

    dtype = methods.kvfmt.open if methods.kvfmt.open != "own" else own(bound)
    store = Store(
        ops, bound.n_layers, bound.n_kv, bound.head_dim, dtype, methods.kvfmt, methods.select,
        methods.rows, list(bound.kv_ropes), bound.attention,
    )  # fmt: skip
    of_tables = ""
    if methods.tables:
        from pronghorn.calibrate.opened import mark, opened

        shape = (bound.n_layers, bound.n_kv, bound.head_dim)
        store.tables = opened(methods.tables, of_model(checkpoint, skips), shape)
        of_tables = mark(store.tables)
    make: Any
    if backend == "native":
        from pronghorn.run.native import NativeRunner

        def make(bound: Any, store: Any, beside: Any) -> Any:
            return NativeRunner(bound, store, threads, beside)
    else:
        from pronghorn.run.ref import RefRunner

        make = RefRunner

    runner = make(bound, store, ())
    if backend == "native":
        store.look = runner.look
    arithmetic = runner.isa if backend == "native" else np.__version__
    home = Home(Model(checkpoint, tape, tokenizer), methods, ops, bound, store, runner, make, own)
    companions = open_companions(methods.models, home)
    if backend == "native":
        checkpoint.tensors.release()
    # one limit for all: a row of the model's own comes with one of each companion
    row_bytes = store.row_bytes + sum(c.row_bytes for c in companions.values())
    kv_rows = int((kv_bytes or free_memory() // 4) / row_bytes)
    for companion in companions.values():
        companion.limit(kv_rows)
    eos = sorted({*checkpoint.eos, *tokenizer.eos})
    engine = Engine(bound, runner, store, methods, tokenizer, kv_rows, eos, clip, companions, stores)
    whole = fingerprint(checkpoint, methods, backend, arithmetic, dtype, of_tables)
    methods.reuse.open(store, whole, engine.cost.prefill)
    return engine


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
