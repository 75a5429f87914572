"""A server whose model says what a test wrote down: what a small model would never say by itself."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from pronghorn.llm import BUNDLED, Options
from pronghorn.model.tokenizer import load_tokenizer
from pronghorn.seq import Request
from pronghorn.serve.settings import Settings

NAME = "scripted"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>'


class ScriptedStream:
    """The text of `say`, a few tokens at a time, then its end."""

    def __init__(self, llm: ScriptedLLM, request: Request) -> None:
        self.id = secrets.token_hex(8)
        self.answers: list[Any] = []
        self.receipt: dict[str, Any] = {}
        self._llm, self._request = llm, request

    async def __aenter__(self) -> ScriptedStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def accepted(self) -> None:
        pass

    async def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[Any]:
        llm = self._llm
        ids, finish = llm.tokenizer.encode(llm.say, bos=False), "stop"
        if len(ids) >= self._request.max_tokens:
            ids, finish = ids[: self._request.max_tokens], "length"
        for at in range(0, len(ids), 3):
            some = ids[at : at + 3]
            yield _delta(llm.tokenizer.decode(some), some, "")
        last = [] if finish == "length" else [llm.tokenizer.eos[0]]
        yield _delta("", last, finish)
        stats = SimpleNamespace(new_tokens=len(ids) + len(last), reused_tokens=0, drafted=0, accepted=0)
        text = llm.tokenizer.decode(ids)
        self.answers = [
            SimpleNamespace(text=text, tokens=(*ids, *last), finish=finish, stats=stats, logprobs=(), tops=())
        ]


def _delta(text: str, tokens: Sequence[int], finish: str) -> Any:
    return SimpleNamespace(
        index=0, text=text, tokens=tuple(tokens), origins=(), logprobs=(), tops=(), finish=finish
    )


class ScriptedLLM:
    """Stands for `AsyncLLM`. prompt and request: of the last request."""

    def __init__(self) -> None:
        self.tokenizer = load_tokenizer(BUNDLED / "pronghorn-tiny", {})
        self.name = NAME
        bound = SimpleNamespace(context=4096, n_vocab=4096)
        engine = SimpleNamespace(
            bound=bound, kv_rows=1 << 20, tokenizer=self.tokenizer, prepare=lambda request: request
        )
        self.llm = SimpleNamespace(engine=engine, methods=(), request=_request)
        self.say = self.prompt = ""
        self.request = Request((0,))

    def submit(self, make: Callable[[], Request], options: Options) -> ScriptedStream:
        marks = self.tokenizer.special_tokens()
        self.request = make()
        ids = self.request.ids
        self.prompt = "".join(marks.get(id_) or self.tokenizer.token_bytes(id_).decode() for id_ in ids)
        return ScriptedStream(self, self.request)


def _request(ids: Sequence[int], o: Options) -> Request:
    return Request(tuple(ids), stop=o.stop, use=o.use)


class ScriptedPool:
    """Stands for `Pool`."""

    def __init__(self) -> None:
        self.llm = ScriptedLLM()
        self.names = (NAME,)
        self.default = NAME

    async def get(self, name: str) -> Any:
        @asynccontextmanager
        async def lease() -> AsyncIterator[ScriptedLLM]:
            yield self.llm

        return lease()

    def metrics(self) -> dict[str, dict[str, float]]:
        return {}

    def __getattr__(self, name: str) -> Any:
        async def nothing(*_: object, **__: object) -> None:
            pass

        return nothing


def scripted_server() -> Iterator[tuple[str, ScriptedLLM]]:
    """(address, model) of a running server."""
    from conftest import serving

    pool = ScriptedPool()
    for running in serving(pool, Settings()):  # type: ignore[arg-type]
        yield running.url, pool.llm
