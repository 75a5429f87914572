"""The asynchronous Python face: `AsyncLLM`, many streams of one model at once.

    async with AsyncLLM("pronghorn-tiny") as llm:
        async with llm.stream("Once upon a time", max_tokens=64) as stream:
            async for delta in stream:
                print(delta.text, end="")

The engine runs in a thread of its own; texts are cut into tokens and grammars compiled in a few others, so
that a large prompt or a hostile schema holds up no stream.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import QueueFullError, UnavailableError
from pronghorn.llm import DEFAULT_MODEL, DEFAULT_USE, LLM, Answer, Options, embedding, make_options
from pronghorn.seq import Request, Top
from pronghorn.serve.delta import Delta
from pronghorn.serve.live import OFTEN
from pronghorn.serve.metrics import Metrics
from pronghorn.serve.receipt import Receipts
from pronghorn.serve.run import Run
from pronghorn.serve.wake import Bell
from pronghorn.serve.worker import Worker

if TYPE_CHECKING:
    from pronghorn.engine import Prepared
    from pronghorn.model.tokenizer import Tokenizer

Prompt = str | Sequence[int]

PLAIN = Options()
PATIENCE = 1.0  # seconds to wait for a view of the engine that is not old
PREPARERS = 4  # threads that cut texts and compile grammars


class AsyncStream:
    """Deltas of a request's answers as they come. It is read on the event loop that asked for it.

    Leaving it early (its `async with` block, its task's cancellation, losing it) cancels the request, whose
    pages are free before the engine's next step. Whoever reads slowly gets larger deltas.
    """

    def __init__(self, worker: Worker, run: Run) -> None:
        self._worker, self._run = worker, run
        self._over = False

    @property
    def id(self) -> str:
        return self._run.id

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Delta:
        try:
            while True:
                delta = None if self._over else self._run.box.take()
                if delta is not None:
                    return delta
                if self._over or self._run.box.ended:
                    self._over = True
                    raise StopAsyncIteration
                await self._wait()
        except StopAsyncIteration:
            raise
        except BaseException:
            self.close()
            raise

    async def _wait(self) -> None:
        """Until the mailbox has something, or the request is accepted or over."""
        box = self._run.box
        box.waiter = asyncio.get_running_loop().create_future()
        if self._run.bell.loop is not box.waiter.get_loop():
            raise RuntimeError("a stream is read on the event loop that asked for it")
        try:
            await box.waiter
        finally:
            box.waiter = None

    async def accepted(self) -> None:
        """Return once the engine has taken the request; raise what is wrong with it."""
        box = self._run.box
        while not self._run.queued and not box.ended:
            await self._wait()
        if box.error is not None:
            raise box.error

    async def result(self) -> list[Answer]:
        """Read to the end; the answers in order."""
        async for _ in self:
            pass
        return self.answers

    @property
    def answers(self) -> list[Answer]:
        """Once it is over; empty when it was cancelled."""
        return self._run.answers

    @property
    def receipt(self) -> dict[str, Any]:
        """How the answers came about, once it is over."""
        return self._run.receipt

    @property
    def prompt_logprobs(self) -> list[float]:
        """Of each prompt token after the first, where the request asked for scores and is over."""
        return self._run.seqs[0].prompt_logprobs

    @property
    def prompt_tops(self) -> list[Top]:
        return self._run.seqs[0].prompt_tops

    @property
    def embedding(self) -> NDArray[np.float32]:
        """(width,) of the prompt, unit length, where the request asked for it and is over."""
        return embedding(self._run.seqs[0])

    @property
    def prompt_tokens(self) -> int:
        """Of the prompt as it runs, known once it is accepted."""
        return self._run.seqs[0].n_prompt if self._run.seqs else 0

    def close(self) -> None:
        """Cancel what still runs, without waiting for it."""
        if not self._over and not self._run.box.ended:
            self._worker.drop(self._run)
        self._over = True

    async def cancel(self) -> None:
        """Cancel, and return once the pages are free."""
        self.close()
        while self._run.queued and not self._run.box.ended:
            await self._wait()

    async def __aenter__(self) -> AsyncStream:
        await self.accepted()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncLLM:
    """A model with the methods it runs under, for many callers at once. See `LLM` for the first arguments.

    max_waiting: requests that may wait; beyond it one is refused with `QueueFullError`. receipts: how many
    are kept. Several event loops, and threads with loops of their own, may use it together. Raises
    `UnavailableError` when it is being closed, or its engine fails again and again (`healthy`, `reason`).
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        use: Sequence[str | Any] = (),
        backend: str = "native",
        threads: int = 0,
        kv_bytes: int = 0,
        defaults: Sequence[str | Any] = DEFAULT_USE,
        *,
        max_waiting: int = 1024,
        receipts: int = 1000,
        name: str = "",
    ) -> None:
        llm = LLM(model, use, backend, threads, kv_bytes, defaults)
        self._take(llm, max_waiting, receipts, name or str(model))

    @classmethod
    def over(cls, llm: LLM, *, max_waiting: int = 1024, receipts: int = 1000, name: str = "") -> AsyncLLM:
        """Serve a model that is loaded already. Nobody else may use `llm` from then on."""
        self = cls.__new__(cls)
        self._take(llm, max_waiting, receipts, name or llm.checkpoint.path.name)
        return self

    def _take(self, llm: LLM, max_waiting: int, receipts: int, name: str) -> None:
        self.llm, self.name, self.max_waiting = llm, name, max_waiting
        self._worker = Worker(llm.engine, name, receipts)
        self._preparers = ThreadPoolExecutor(PREPARERS, thread_name_prefix=f"pronghorn-prepare-{name}")
        self._lock = threading.Lock()
        self._bells: dict[asyncio.AbstractEventLoop, Bell] = {}
        self._started = self._closing = False

    # ------------------------------------------------------------------ what it is

    @property
    def tokenizer(self) -> Tokenizer:
        return self.llm.tokenizer

    @property
    def healthy(self) -> bool:
        return not self.reason

    @property
    def reason(self) -> str:
        """Why it cannot serve, "" while it can."""
        return self._worker.reason

    @property
    def idle(self) -> bool:
        """No request is running or waiting."""
        return self._worker.idle

    @property
    def queue_length(self) -> int:
        """Requests that wait for their turn."""
        return self._worker.queue_length

    @property
    def stats(self) -> Metrics:
        return self._worker.metrics

    @property
    def receipts(self) -> Receipts:
        return self._worker.receipts

    def state(self) -> dict[str, Any]:
        """The live view, at most a moment old for whoever asks twice a second; ready for JSON."""
        self.begin()
        return self._worker.look()

    async def look(self) -> dict[str, Any]:
        """The live view as it is now, unless a step takes longer than `PATIENCE`."""
        asked = time.monotonic()
        state = self.state()
        while self._worker.live.taken < asked - OFTEN and time.monotonic() < asked + PATIENCE:
            await asyncio.sleep(0.005)
            state = self.state()
        return state

    def receipt(self, id_: str) -> dict[str, Any]:
        """How the answers of an ended request came about. Raises `KeyError` for one not kept."""
        found = self.receipts.get(id_)
        if found is None:
            raise KeyError(id_)
        return found

    # ------------------------------------------------------------------ text

    def stream(self, prompt: Prompt, **options: Any) -> AsyncStream:
        """Continue a prompt, text or token ids. Keywords: see `Options`."""
        o = make_options(options)
        return self.submit(lambda: self.llm.request(self.ids(prompt), o), o)

    def chat_stream(self, messages: Sequence[dict[str, Any]], **options: Any) -> AsyncStream:
        """Answer a conversation: [{"role": "user", "content": "..."}]."""
        o = make_options(options)
        return self.submit(lambda: self.llm.request(self.tokenizer.chat(list(messages)), o), o)

    async def generate(self, prompts: str | Sequence[str], **options: Any) -> Answer | list[Answer]:
        """Continue one prompt, or several at once. Keywords: see `Options`."""
        o = make_options(options)
        many = [prompts] if isinstance(prompts, str) else list(prompts)
        streams = await self._all([partial(self._plain, p, o) for p in many], o)
        answers = [_joined(s.answers) for s in streams]
        return answers[0] if isinstance(prompts, str) else answers

    async def chat(self, messages: Sequence[dict[str, Any]], **options: Any) -> Answer:
        """Answer a conversation."""
        o = make_options(options)
        (stream,) = await self._all([lambda: self.llm.request(self.tokenizer.chat(list(messages)), o)], o)
        return _joined(stream.answers)

    # ------------------------------------------------------------------ numbers

    async def score(self, text: Prompt) -> list[float]:
        """Natural-log probability of each token of `text` after the first; see `LLM.score`."""
        (stream,) = await self._all([lambda: Request(tuple(self.ids(text)), max_tokens=0, score=True)])
        return stream.prompt_logprobs

    async def embed(self, texts: str | Sequence[Prompt]) -> NDArray[np.float32]:
        """(n, width) mean of the last layer's normalised states over each text, unit length."""
        many = [texts] if isinstance(texts, str) else list(texts)
        return np.stack([s.embedding for s in await self._all([partial(self._pool, t) for t in many])])

    # ------------------------------------------------------------------ requests

    def ids(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _plain(self, prompt: Prompt, o: Options) -> Request:
        return self.llm.request(self.ids(prompt), o)

    def _pool(self, prompt: Prompt) -> Request:
        return Request(tuple(self.ids(prompt)), max_tokens=0, embed=True)

    def submit(
        self, make: Callable[[], Request | Prepared], options: Options = PLAIN, quiet: bool = False
    ) -> AsyncStream:
        """Queue the request that `make`, called in another thread, returns, prepared or not. quiet: its
        stream has no deltas, only an end. Raises `QueueFullError` or `UnavailableError` at once; what is
        wrong with the request comes out of the stream."""
        self.begin()
        if self.reason or self._closing:
            raise UnavailableError(self.reason or "the model is being closed")
        run = Run(f"req-{uuid.uuid4().hex}", self._bell(), quiet, options.logprobs)
        if not self._worker.admit(self.max_waiting):
            raise QueueFullError(f"{self.max_waiting} requests are waiting already: try again later")
        try:
            self._preparers.submit(self._prepare, run, make)
        except RuntimeError:  # another thread closed it just now
            self._worker.refuse(run, UnavailableError("the model is being closed"))
        return AsyncStream(self._worker, run)

    def _prepare(self, run: Run, make: Callable[[], Request | Prepared]) -> None:
        try:
            if run.dropped:
                raise UnavailableError("cancelled while it waited")
            made = make()
            prepared = self.llm.engine.prepare(made) if isinstance(made, Request) else made
        except Exception as e:
            self._worker.refuse(run, e)
            return
        self._worker.submit(run, prepared)

    async def _all(
        self, makes: Sequence[Callable[[], Request]], options: Options = PLAIN
    ) -> list[AsyncStream]:
        """Run requests to their ends; the first error cancels the others."""
        streams: list[AsyncStream] = []
        try:
            for make in makes:
                streams += [self.submit(make, options, quiet=True)]
            for stream in streams:
                await stream.result()
        finally:
            for stream in streams:
                stream.close()
        return streams

    def _bell(self) -> Bell:
        loop = asyncio.get_running_loop()
        with self._lock:
            for old in [b for b in self._bells if b.is_closed()]:
                del self._bells[old]
            return self._bells.setdefault(loop, Bell(loop))

    # ------------------------------------------------------------------ life

    def begin(self, calibrate: bool = False) -> None:
        """Start the engine's thread, which the first request does otherwise. calibrate: measure first what
        steps cost, for less than half a second, so that the first plans are sensible too."""
        with self._lock:
            if not self._started and not self._closing:
                self._started = True
                self._worker.start(calibrate)

    async def start(self) -> None:
        """`begin` for callers with an event loop, and with a measurement of what steps cost."""
        self.begin(calibrate=True)

    async def close(self, drain: float = 0.0) -> None:
        """Take no more requests, finish what there is for up to `drain` seconds, cancel the rest and free
        everything held."""
        await asyncio.to_thread(self.shut, drain)

    def shut(self, drain: float = 0.0) -> None:
        """`close` for a caller without an event loop."""
        self.begin()
        with self._lock:
            self._closing = True
        self._worker.stop(drain)
        self._worker.join()
        self._preparers.shutdown(wait=False, cancel_futures=True)

    async def __aenter__(self) -> AsyncLLM:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _joined(answers: Sequence[Answer]) -> Answer:
    """The first of a request's answers, with the others in it."""
    return replace(answers[0], more=tuple(answers[1:]))
