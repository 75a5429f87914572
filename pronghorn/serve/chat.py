"""/v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from pronghorn.serve import logprobs
from pronghorn.serve.body import StrictRoute
from pronghorn.serve.context import Context, user_of
from pronghorn.serve.errors import ApiError, json_response, responses
from pronghorn.serve.fields import MOST, Body, Name, Part, ResponseFormat, Sampling, Text, words
from pronghorn.serve.generation import (
    Answering,
    answering,
    constraint,
    encode_chat,
    fingerprint,
    new_id,
    options,
    schema_of,
    trace,
    usage,
)
from pronghorn.serve.parts import Calls, Plain, Writer
from pronghorn.serve.sse import DONE, EventStream, event, whole
from pronghorn.serve.tools import Plan
from pronghorn.serve.tools.chat import ChatTool, ChatToolChoice, read_choice, read_tools
from pronghorn.serve.tools.spec import N_TOOLS_MAX

if TYPE_CHECKING:
    from pronghorn.serve.async_llm import AsyncLLM


class CalledFunction(Body):
    name: Name
    arguments: Text = ""


class MessageCall(Body):
    id: Name = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part] | None = None
    name: Name | None = None
    tool_calls: list[MessageCall] | None = Field(None, max_length=128)
    tool_call_id: Name | None = None


class ChatBody(Sampling):
    messages: list[Message] = Field(min_length=1, max_length=10_000)
    max_tokens: int | None = Field(None, ge=1, le=MOST)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST)
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[ChatTool] | None = Field(None, max_length=N_TOOLS_MAX)
    tool_choice: ChatToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def most(self) -> int | None:
        """New tokens at most; None to the context's end."""
        return self.max_completion_tokens or self.max_tokens


def plain_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as a chat template takes them. A developer is who other models call system."""
    out: list[dict[str, Any]] = []
    for m in messages:
        role = "system" if m.role == "developer" else m.role
        made: dict[str, Any] = {"role": role, "content": words(m.content)}
        if m.tool_calls:
            made["tool_calls"] = [call.model_dump() for call in m.tool_calls]
        if m.role == "tool" and m.tool_call_id:
            made["tool_call_id"] = m.tool_call_id
        out.append(made)
    return out


def router(ctx: Context) -> APIRouter:
    made = APIRouter(tags=["chat"], route_class=StrictRoute)

    @made.post("/v1/chat/completions", responses=responses(404, 408, 413, 415, 429, 504))
    async def create_chat_completion(request: Request, body: ChatBody) -> Response:
        """Answer a conversation."""
        job = _Chat(ctx, body, user_of(request, body.safety_identifier or body.user or ""))
        return EventStream(job.stream()) if body.stream else await whole(request, job.answer())

    return made


class _Chat:
    """One request on its way through."""

    def __init__(self, ctx: Context, body: ChatBody, user: str) -> None:
        self.ctx, self.body, self.user = ctx, body, user
        self.created = int(time.time())

    def _plan(self, llm: AsyncLLM) -> tuple[Plan, list[Any]]:
        """What the tools come to, and the constraints of the answer."""
        body = self.body
        plan = Plan(
            llm.tokenizer,
            read_tools(body.tools or []),
            read_choice(body.tool_choice, body.parallel_tool_calls is not False),
        )
        form = body.response_format
        if not plan.callable:
            return plan, constraint(form)
        if body.extension.regex:
            raise ApiError(400, "tools and pronghorn.regex are both given: choose one", "tools")
        plan = replace(plan, schema=schema_of(form))
        return plan, plan.constraint()

    async def _asked(self, llm: AsyncLLM) -> tuple[Plan, dict[str, Any], list[int]]:
        """What the tools come to, the options, and the prompt."""
        body = self.body
        plan, constraints = self._plan(llm)
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
        given = options(body, self.user, constraints)
        given |= {"logprobs": bool(body.logprobs), "top_logprobs": body.top_logprobs or 0}
        return plan, given, await encode_chat(self.ctx, llm, plain_messages(body.messages), plan.shown)

    def _head(self, answer: Answering, kind: str) -> dict[str, Any]:
        return {
            "id": new_id("chatcmpl", answer.id), "object": kind, "created": self.created,
            "model": answer.llm.name, "system_fingerprint": fingerprint(answer.llm),
        }  # fmt: skip

    def _logprobs(self, answer: Answering, tokens: Any, values: Any, tops: Any) -> dict[str, Any] | None:
        """Of the tokens that are text: the one that ends it is none."""
        if not self.body.logprobs:
            return None
        tokenizer = answer.llm.tokenizer
        n = len(tokens) - bool(tokens and tokens[-1] in tokenizer.eos)
        return {"content": logprobs.of_chat(tokenizer, tokens[:n], values, tops), "refusal": None}

    async def answer(self) -> Response:
        async with self.ctx.model(self.body.model) as llm:
            plan, given, ids = await self._asked(llm)
            async with answering(self.ctx, llm, ids, given, self.body.most) as answer:
                answers = await answer.rest()
                choices = []
                for i, a in enumerate(answers):
                    message, finish = _writer(plan, given, ids).message(a.text, a.tokens, a.finish)
                    choices.append({
                        "index": i,
                        "message": {"role": "assistant", "refusal": None, **message},
                        "logprobs": self._logprobs(answer, a.tokens, a.logprobs, a.tops),
                        "finish_reason": finish,
                    })  # fmt: skip
                data = self._head(answer, "chat.completion") | {
                    "choices": choices, "usage": usage(answers, len(ids)),
                }  # fmt: skip
                if self.body.extension.trace:
                    data["pronghorn"] = {"receipt": answer.receipt}
                return json_response(data)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        own, counted = self.body.extension, self.body.stream_options
        async with self.ctx.model(self.body.model) as llm:
            plan, given, ids = await self._asked(llm)
            async with answering(self.ctx, llm, ids, given, self.body.most) as answer:
                head = self._head(answer, "chat.completion.chunk")
                if counted and counted.include_usage:
                    head["usage"] = None
                writers: dict[int, Writer] = {}
                async for delta in answer:
                    i = delta.index
                    if i not in writers:
                        writers[i] = _writer(plan, given, ids)
                        yield event(head | {"choices": [_choice(i, {"role": "assistant", "content": ""})]})
                    parts = writers[i].feed(delta.text, delta.tokens)
                    known = self._logprobs(answer, delta.tokens, delta.logprobs, delta.tops)
                    extra = {"pronghorn": trace(delta, llm.tokenizer)} if own.trace else {}
                    if not parts and ((known and known["content"]) or extra):
                        parts = [{}]  # the tokens are told even where their text is held back
                    for at, part in enumerate(parts):
                        first = at == 0
                        yield event(
                            head
                            | {"choices": [_choice(i, part, known if first else None)]}
                            | (extra if first else {})
                        )
                    if delta.finish:
                        rest, finish = writers[i].end(delta.finish)
                        for part in rest:
                            yield event(head | {"choices": [_choice(i, part)]})
                        yield event(head | {"choices": [_choice(i, {}, finish=finish)]})
                if counted and counted.include_usage:
                    yield event(head | {"choices": [], "usage": usage(answer.answers, len(ids))})
                if own.trace:
                    yield event(head | {"choices": [], "pronghorn": {"receipt": answer.receipt}})
        yield DONE


def _writer(plan: Plan, given: dict[str, Any], ids: Sequence[int]) -> Writer:
    return Calls(plan.reader(given["stop"], ids)) if plan.callable else Plain()


def _choice(
    index: int, delta: dict[str, Any], known: dict[str, Any] | None = None, finish: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": known, "finish_reason": finish}
