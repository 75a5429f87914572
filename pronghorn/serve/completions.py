"""/v1/completions: prompts continued as they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, field_validator
from starlette.responses import Response

from pronghorn.serve import logprobs
from pronghorn.serve.body import StrictRoute
from pronghorn.serve.context import Context, user_of
from pronghorn.serve.errors import ApiError, json_response, responses
from pronghorn.serve.fields import MOST, ResponseFormat, Sampling, Text
from pronghorn.serve.generation import (
    Answering,
    answering,
    constraint,
    encode,
    fingerprint,
    new_id,
    options,
    trace,
    usage,
)
from pronghorn.serve.sse import DONE, EventStream, event, whole

if TYPE_CHECKING:
    from pronghorn.llm import Answer
    from pronghorn.serve.async_llm import AsyncLLM
    from pronghorn.serve.delta import Delta

Token = Annotated[int, Field(ge=0, le=MOST)]
Ids = Annotated[list[Token], Field(min_length=1, max_length=1 << 20)]
Texts = Annotated[list[Text], Field(min_length=1)]
Batch = Annotated[list[Ids], Field(min_length=1)]


class CompletionBody(Sampling):
    prompt: Text | Ids | Texts | Batch = Field(union_mode="left_to_right")
    max_tokens: int | None = Field(None, ge=0, le=MOST, description="Default 16; 0 with echo only.")
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = Field(None, ge=1, le=128)
    suffix: str | None = None
    response_format: ResponseFormat | None = None

    @field_validator("suffix")
    @classmethod
    def _none(cls, suffix: str | None) -> str | None:
        if suffix:
            raise ValueError("text before a suffix cannot be filled in: leave it out")
        return None

    @property
    def prompts(self) -> list[str | list[int]]:
        p = self.prompt
        return list(p) if isinstance(p, list) and not isinstance(p[0], int) else [p]


def router(ctx: Context) -> APIRouter:
    made = APIRouter(tags=["completions"], route_class=StrictRoute)

    @made.post("/v1/completions", responses=responses(404, 408, 413, 415, 429, 504))
    async def create_completion(request: Request, body: CompletionBody) -> Response:
        """Continue one prompt or several."""
        job = _Completions(ctx, body, user_of(request, body.safety_identifier or body.user or ""))
        return EventStream(job.stream()) if body.stream else await whole(request, job.answer())

    return made


class _Completions:
    """One request on its way through: every prompt is a request of the engine's own, all at once."""

    def __init__(self, ctx: Context, body: CompletionBody, user: str) -> None:
        self.ctx, self.body, self.user = ctx, body, user
        self.created = int(time.time())
        self.id = ""
        self.n = body.n or 1
        self.at: dict[int, int] = {}  # characters of each choice that were streamed
        if len(body.prompts) > ctx.settings.max_prompts:
            raise ApiError(400, f"{len(body.prompts)} prompts, at most {ctx.settings.max_prompts}", "prompt")
        if (body.best_of or 1) > 1 and body.best_of != body.n:
            raise ApiError(
                400, "best_of is not done here: ask for n, or use best-of-n under pronghorn", "best_of"
            )
        if body.max_tokens == 0 and not body.echo:
            raise ApiError(
                400, "max_tokens is 0: ask for at least one token, or echo the prompt", "max_tokens"
            )
        if body.stream and body.echo and body.logprobs is not None:
            raise ApiError(400, "echo with logprobs does not stream: leave out one of them", "stream")

    def _options(self) -> dict[str, Any]:
        body = self.body
        given = options(body, self.user, constraint(body.response_format))
        return given | {"logprobs": body.logprobs is not None, "top_logprobs": body.logprobs or 0}

    async def _begin(self, stack: AsyncExitStack, llm: AsyncLLM) -> list[Answering]:
        """Start all prompts."""
        body, given = self.body, self._options()
        most = 16 if body.max_tokens is None else body.max_tokens
        score = bool(body.echo and body.logprobs is not None)
        all_ids = [await encode(llm, p) if isinstance(p, str) else p for p in body.prompts]
        return [
            await stack.enter_async_context(answering(self.ctx, llm, ids, given, most, score))
            for ids in all_ids
        ]

    def _head(self, answer: Answering) -> dict[str, Any]:
        self.id = self.id or new_id("cmpl", answer.id)
        return {
            "id": self.id, "object": "text_completion", "created": self.created, "model": answer.llm.name,
            "system_fingerprint": fingerprint(answer.llm),
        }  # fmt: skip

    async def answer(self) -> Response:
        async with self.ctx.model(self.body.model) as llm, AsyncExitStack() as stack:
            running = await self._begin(stack, llm)
            answers = await asyncio.gather(*(a.rest() for a in running))
            choices = [
                self._choice(i * self.n + j, under_way, a)
                for i, (under_way, group) in enumerate(zip(running, answers, strict=True))
                for j, a in enumerate(group)
            ]
            data = self._head(running[0]) | {"choices": choices, "usage": _sum(running)}
            if self.body.extension.trace:
                data["pronghorn"] = {"receipts": [a.receipt for a in running]}
            return json_response(data)

    def _choice(self, index: int, under_way: Answering, a: Answer) -> dict[str, Any]:
        body, tokenizer = self.body, under_way.llm.tokenizer
        text, known = a.text, None
        before = self._prompt(index, under_way) if body.echo else ""
        if body.logprobs is not None:
            tokens: list[int] = list(a.tokens)
            values: list[float | None] = list(a.logprobs)
            tops: list[Any] = list(a.tops)
            if body.echo:
                tokens = [*under_way.ids, *tokens]
                values = [None, *under_way.stream.prompt_logprobs, *values]
                tops = [(), *under_way.stream.prompt_tops, *tops]
            known = logprobs.of_completion(tokenizer, tokens, values, tops, 0)
        return {"index": index, "text": before + text, "logprobs": known, "finish_reason": a.finish}

    def _prompt(self, index: int, under_way: Answering) -> str:
        """The text that an answer continues, as it was given."""
        given = self.body.prompts[index // self.n]
        return given if isinstance(given, str) else under_way.llm.tokenizer.decode(given)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        own, counted = self.body.extension, self.body.stream_options
        async with self.ctx.model(self.body.model) as llm, AsyncExitStack() as stack:
            running = await self._begin(stack, llm)
            head = self._head(running[0])
            if counted and counted.include_usage:
                head["usage"] = None
            told: set[int] = set()
            async for i, delta in merged(running):
                index = i * self.n + delta.index
                before = self._prompt(index, running[i]) if self.body.echo and index not in told else ""
                told.add(index)
                yield event(head | self._chunk(index, delta, before, llm))
            if counted and counted.include_usage:
                yield event(head | {"choices": [], "usage": _sum(running)})
            if own.trace:
                receipts = {"receipts": [a.receipt for a in running]}
                yield event(head | {"choices": [], "pronghorn": receipts})
        yield DONE

    def _chunk(self, index: int, delta: Delta, before: str, llm: AsyncLLM) -> dict[str, Any]:
        known = None
        if self.body.logprobs is not None:
            start = self.at.get(index, 0)
            known = logprobs.of_completion(llm.tokenizer, delta.tokens, delta.logprobs, delta.tops, start)
            self.at[index] = start + len(delta.text)
        choice = {
            "index": index, "text": before + delta.text, "logprobs": known,
            "finish_reason": delta.finish or None,
        }  # fmt: skip
        extra = {"pronghorn": trace(delta, llm.tokenizer)} if self.body.extension.trace else {}
        return {"choices": [choice]} | extra


async def merged(running: list[Answering]) -> AsyncGenerator[tuple[int, Delta], None]:
    """Deltas of several answers as they come, with the number of the answer."""
    if len(running) == 1:
        async for delta in running[0]:
            yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, Delta] | BaseException | None] = asyncio.Queue(maxsize=1)

    async def feed(i: int) -> None:
        try:
            async for delta in running[i]:
                await queue.put((i, delta))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.ensure_future(feed(i)) for i in range(len(running))]
    try:
        left = len(tasks)
        while left:
            got = await queue.get()
            if isinstance(got, BaseException):
                raise got
            if got is None:
                left -= 1
            else:
                yield got
    finally:
        for task in tasks:
            task.cancel()


def _sum(running: list[Answering]) -> dict[str, Any]:
    """Token counts of all prompts together."""
    out: dict[str, Any] = {}
    for answer in running:
        for key, value in usage(answer.answers, len(answer.ids)).items():
            if isinstance(value, dict):
                held = out.setdefault(key, {})
                for inner, number in value.items():
                    held[inner] = held.get(inner, 0) + number
            else:
                out[key] = out.get(key, 0) + value
    return out
