"""From a validated body to an answer under way: what every endpoint that generates text shares.

async with ctx.model(body.model) as llm:
    ids = await encode_chat(ctx, llm, messages)
    async with answering(ctx, llm, ids, options(body, user), max_tokens) as answer:
        async for delta in answer: ...
"""

from __future__ import annotations

import asyncio
import json
import secrets
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pronghorn import __version__
from pronghorn.compose import load
from pronghorn.errors import RequestError
from pronghorn.llm import make_options
from pronghorn.serve.context import Context
from pronghorn.serve.errors import ApiError
from pronghorn.serve.fields import AsJson, AsSchema, AsText, Sampling
from pronghorn.serve.tools import Tool, conversation

if TYPE_CHECKING:
    from pronghorn.llm import Answer
    from pronghorn.model.tokenizer import Tokenizer
    from pronghorn.serve.async_llm import AsyncLLM, AsyncStream
    from pronghorn.serve.delta import Delta

SMALL = 1 << 14  # characters that are cut into tokens at once; longer texts in a thread


# ------------------------------------------------------------------ a body in the engine's words


def options(body: Sampling, user: str = "", constraint: Sequence[Any] = ()) -> dict[str, Any]:
    """Keywords of `Options` for a body, without max_tokens. `constraint`: methods on top of the body's own.
    Raises `RequestError` or `MethodError`."""
    own = body.extension
    if own.regex:
        if constraint:
            raise ApiError(400, "a format of the answer and pronghorn.regex are both given: choose one")
        constraint = [load("constrain", "regex")(pattern=own.regex)]
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return {
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "seed": secrets.randbits(63) if body.seed is None else body.seed % (1 << 64),
        "stop": tuple(s for s in stop if s),
        "n": body.n or 1,
        "use": (*own.use, *shapers(body), *constraint),
        "priority": own.priority,
        "deadline": own.deadline,
        "user": user or body.safety_identifier or body.user or "",
        "ignore_eos": own.ignore_eos,
        "truncate": own.truncate,
    }


def shapers(body: Sampling) -> list[Any]:
    """Shaping methods that the body's fields stand for; fields that change nothing stand for none."""
    out: list[Any] = []
    if body.logit_bias:
        pairs = ",".join(f"{_id(token)}:{value}" for token, value in body.logit_bias.items())
        out.append(load("shape", "logit-bias")(bias=pairs))
    if body.repetition_penalty not in (None, 1):
        out.append(load("shape", "repetition-penalty")(penalty=body.repetition_penalty))
    if body.presence_penalty:
        out.append(load("shape", "presence-penalty")(penalty=body.presence_penalty))
    if body.frequency_penalty:
        out.append(load("shape", "frequency-penalty")(penalty=body.frequency_penalty))
    if body.top_k is not None and body.top_k > 0:
        out.append(load("shape", "top-k")(k=body.top_k))
    if body.top_p is not None and body.top_p < 1:
        out.append(load("shape", "top-p")(p=max(body.top_p, 1e-9)))  # 0 keeps the likeliest
    if body.min_p:
        out.append(load("shape", "min-p")(p=body.min_p))
    return out


def _id(token: str) -> int:
    if not token.isascii() or not token.isdigit() or len(token) > 9:
        raise ApiError(400, f"logit_bias: {token[:40]!r} is not the id of a token", "logit_bias")
    return int(token)


def constraint(form: AsText | AsJson | AsSchema | None) -> list[Any]:
    """The constraint that a response format stands for."""
    if isinstance(form, AsJson):
        return [load("constrain", "json")()]
    if isinstance(form, AsSchema):
        schema = form.json_schema.schema_
        return [load("constrain", "json")(schema="" if schema is None else json.dumps(schema))]
    return []


def schema_of(form: AsText | AsJson | AsSchema | None) -> dict[str, Any] | None:
    """The schema that a response format asks for, None for text."""
    if isinstance(form, AsSchema):
        schema = form.json_schema.schema_
        return schema if isinstance(schema, dict) else {"type": "object"}
    return {"type": "object"} if isinstance(form, AsJson) else None


async def encode(llm: AsyncLLM, text: str, bos: bool = True) -> list[int]:
    """Ids of a text. One that cannot fit the context is refused unread; a long one does not hold up
    others."""
    check_length(llm, len(text))
    if len(text) <= SMALL:
        return llm.tokenizer.encode(text, bos=bos)
    return await asyncio.to_thread(llm.tokenizer.encode, text, bos=bos)


def check_length(llm: AsyncLLM, size: int) -> None:
    """Refuse so many characters where they cannot fit the context. Raises `RequestError`."""
    most = context_of(llm)
    if size > most * longest_token(llm.tokenizer):
        raise RequestError(
            f"the text has {size} characters, more than fit the model's context of {most} tokens: shorten it"
        )


async def encode_chat(
    ctx: Context, llm: AsyncLLM, messages: list[dict[str, Any]], tools: Sequence[Tool] = ()
) -> list[int]:
    """Ids of a conversation, as the model's template writes it, with the tools that it may call."""
    size = sum(len(str(m.get("content"))) for m in messages)
    check_length(llm, size)
    async with ctx.rendering:
        if size <= SMALL and not tools:
            return conversation(llm.tokenizer, messages)
        return await asyncio.to_thread(conversation, llm.tokenizer, messages, tools)


def context_of(llm: AsyncLLM) -> int:
    """Tokens of a text, prompt and answer together."""
    return int(llm.llm.engine.bound.context)


@lru_cache(maxsize=16)
def longest_token(tokenizer: Tokenizer) -> int:
    """Bytes of the longest token: a text has at most so many characters per token."""
    return max(map(len, tokenizer.vocabulary()), default=1) or 1


# ------------------------------------------------------------------ an answer under way


class Answering:
    """One request under way: iterate for its deltas. `answers` and `receipt` are there after the end.

    An answer that takes longer than the settings allow is cancelled, with a 504.
    """

    def __init__(self, llm: AsyncLLM, stream: AsyncStream, ids: Sequence[int], timeout: float) -> None:
        self.llm, self.stream, self.ids, self.timeout = llm, stream, ids, timeout
        self.expired = False

    @property
    def id(self) -> str:
        return self.stream.id

    @property
    def answers(self) -> list[Answer]:
        return self.stream.answers

    @property
    def receipt(self) -> dict[str, Any]:
        return self.stream.receipt

    async def __aiter__(self) -> AsyncIterator[Delta]:
        timer = asyncio.get_running_loop().call_later(self.timeout, self._expire)
        try:
            async for delta in self.stream:
                if delta.finish == "cancelled":  # the server ends before the answer does
                    break
                yield delta
        finally:
            timer.cancel()
        if self.expired:
            raise ApiError(
                504,
                f"the answer was not complete after {self.timeout:g} s: ask for fewer tokens",
                code="timeout",
            )
        if not self.answers:
            raise ApiError(
                503, "the server ended this answer: it is shutting down", code="cancelled", retry=5
            )

    def _expire(self) -> None:
        self.expired = True
        self.stream.close()

    async def rest(self) -> list[Answer]:
        """Wait for the end; the answers."""
        async for _ in self:
            pass
        return self.answers


@asynccontextmanager
async def answering(
    ctx: Context,
    llm: AsyncLLM,
    ids: Sequence[int],
    given: dict[str, Any],
    max_tokens: int | None,
    score: bool = False,
) -> AsyncIterator[Answering]:
    """Start a request and end it with the block, whatever happens in it. given: see `options`. max_tokens
    None: to the context's end. score: log-probabilities of the prompt too. Raises `ApiError` and
    `PronghornError`."""
    if given["n"] > ctx.settings.max_branches:
        raise ApiError(400, f"n is {given['n']}, at most {ctx.settings.max_branches}", "n")
    most = _room(llm, len(ids), given) if max_tokens is None else max_tokens
    own = make_options({**given, "max_tokens": max(most, 1)})
    request = replace(llm.llm.request(list(ids), own), score=score, max_tokens=most)
    ready = await ctx.grammars.opened(llm.llm.engine, request)
    stream = llm.submit(lambda: ready, own)
    try:
        async with stream:
            yield Answering(llm, stream, ids, ctx.settings.timeout)
    finally:
        stream.close()


def _room(llm: AsyncLLM, n_prompt: int, given: dict[str, Any]) -> int:
    """New tokens for a request that names no number: to the context's end, as far as all answers fit the KV;
    half of the context where the prompt will be cut."""
    context, n = context_of(llm), given["n"]
    if given["truncate"] and n_prompt >= context:
        return context // 2
    return max(min(context - n_prompt, int(llm.llm.engine.kv_rows - n_prompt) // int(n)), 1)


# ------------------------------------------------------------------ what answers have in common


def new_id(kind: str, stream_id: str) -> str:
    """The id of an answer; `/v1/receipts/{id}` finds it with or without its kind."""
    return f"{kind}-{stream_id.removeprefix('req-')}"


def usage(answers: Sequence[Answer], n_prompt: int) -> dict[str, Any]:
    """Token counts as the OpenAI API gives them. Drafted tokens are its "predictions"."""
    stats = [a.stats for a in answers]
    new = sum(s.new_tokens for s in stats)
    accepted = sum(s.accepted for s in stats)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": new,
        "total_tokens": n_prompt + new,
        "prompt_tokens_details": {"cached_tokens": min(stats[0].reused_tokens if stats else 0, n_prompt)},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": max(sum(s.drafted for s in stats) - accepted, 0),
        },
    }


def trace(delta: Delta, tokenizer: Tokenizer) -> dict[str, Any]:
    """Where each token of a delta came from."""
    return {
        "tokens": [
            {"id": t, "text": token_text(tokenizer, t), "origin": o.name.lower()}
            for t, o in zip(delta.tokens, delta.origins, strict=True)
        ]
    }


@lru_cache(maxsize=16)
def markup(tokenizer: Tokenizer) -> dict[int, str]:
    """Texts of the special tokens."""
    return tokenizer.special_tokens()


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token as text, for people; the markup of a special one."""
    return tokenizer.token_bytes(token).decode("utf-8", "replace") or markup(tokenizer).get(token, "")


def fingerprint(llm: AsyncLLM) -> str:
    """What, besides the request and its seed, decides the tokens: `system_fingerprint`."""
    return f"fp_{zlib.crc32(repr((__version__, llm.name, llm.llm.methods)).encode()):08x}"
