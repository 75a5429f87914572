"""/v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from pronghorn.serve.body import StrictRoute
from pronghorn.serve.context import Context, user_of
from pronghorn.serve.errors import ApiError, error_data, json_response, responses
from pronghorn.serve.generation import Answering, answering, encode_chat, new_id, options, usage
from pronghorn.serve.messages.body import CountBody, MessagesBody, as_messages, read_choice, read_tools
from pronghorn.serve.messages.output import Blocks, Event
from pronghorn.serve.sse import EventStream, event, whole
from pronghorn.serve.tools import Plan, Reader

if TYPE_CHECKING:
    from pronghorn.serve.async_llm import AsyncLLM

PATH = "/v1/messages"


def router(ctx: Context) -> APIRouter:
    made = APIRouter(tags=["messages"], route_class=StrictRoute)

    @made.post(PATH, responses=responses(404, 408, 413, 415, 429, 504))
    async def create_message(request: Request, body: MessagesBody) -> Response:
        """Answer a conversation, as the Anthropic API does."""
        job = _Job(ctx, body, user_of(request, body.user))
        return EventStream(job.stream(), _failed) if body.stream else await whole(request, job.answer())

    @made.post(f"{PATH}/count_tokens", responses=responses(404, 408, 413, 415))
    async def count_message_tokens(request: Request, body: CountBody) -> Response:
        """How many tokens a conversation takes as a prompt."""

        async def count() -> Response:
            async with ctx.model(body.model) as llm:
                plan = Plan(llm.tokenizer, read_tools(body.tools or []), read_choice(body.tool_choice))
                return json_response({"input_tokens": len(await _prompt(ctx, llm, body, plan))})

        return await whole(request, count())

    return made


async def _prompt(ctx: Context, llm: AsyncLLM, body: CountBody, plan: Plan) -> list[int]:
    """Ids of the conversation; what the answer begins with is part of the prompt."""
    messages, begun = as_messages(body)
    ids = await encode_chat(ctx, llm, messages, plan.shown)
    return ids + (llm.tokenizer.encode(begun, bos=False) if begun else [])


def _failed(error: ApiError) -> bytes:
    return event(error_data(error, PATH), "error")


class _Job:
    """One request on its way through."""

    def __init__(self, ctx: Context, body: MessagesBody, user: str) -> None:
        self.ctx, self.body, self.user = ctx, body, user
        self.content = Blocks()
        self.message: dict[str, Any] = {}

    def _begin(self, answer: Answering) -> None:
        self.message = {
            "id": new_id("msg", answer.id), "type": "message", "role": "assistant", "model": answer.llm.name,
            "content": [], "stop_reason": None, "stop_sequence": None,
            "usage": _usage(len(answer.ids), 0, 0),
        }  # fmt: skip

    def _finish(self, answer: Answering, reader: Reader, finish: str, tokens: list[int]) -> None:
        reason, stop = _reason(answer, reader, finish, tokens, self.body.stop_sequences or [])
        counted = usage(answer.answers, len(answer.ids))
        cached = counted["prompt_tokens_details"]["cached_tokens"]
        self.message |= {
            "content": self.content.blocks, "stop_reason": reason, "stop_sequence": stop,
            "usage": _usage(counted["prompt_tokens"] - cached, cached, counted["completion_tokens"]),
        }  # fmt: skip
        if self.body.sampling.extension.trace:
            self.message["pronghorn"] = {"receipt": answer.receipt}

    async def _run(self) -> AsyncGenerator[Event, None]:
        """Every event of the message, in order."""
        body = self.body
        async with self.ctx.model(body.model) as llm:
            plan = Plan(
                llm.tokenizer, read_tools(body.tools or []), read_choice(body.tool_choice), body.schema_wanted
            )
            given = options(body.sampling, self.user, plan.constraint())
            ids = await _prompt(self.ctx, llm, body, plan)
            async with answering(self.ctx, llm, ids, given, body.max_tokens) as answer:
                self._begin(answer)
                yield {"type": "message_start", "message": dict(self.message)}
                yield {"type": "ping"}
                reader, finish = plan.reader(given["stop"], ids), ""
                tokens: list[int] = []
                async for delta in answer:
                    tokens += delta.tokens
                    for each in self.content.feed(reader.feed(delta.text, delta.tokens)):
                        yield each
                    finish = delta.finish or finish
                for each in [*self.content.feed(reader.end()), *self.content.close()]:
                    yield each
                self._finish(answer, reader, finish, tokens)
                end = {key: self.message[key] for key in ("stop_reason", "stop_sequence")}
                yield {"type": "message_delta", "delta": end, "usage": self.message["usage"]}
                yield {"type": "message_stop"}

    async def answer(self) -> Response:
        async for _ in self._run():
            pass
        return json_response(self.message)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        async for each in self._run():
            yield event(each, each["type"])


def _usage(n_new: int, n_cached: int, n_out: int) -> dict[str, Any]:
    return {
        "input_tokens": n_new, "cache_creation_input_tokens": 0, "cache_read_input_tokens": n_cached,
        "output_tokens": n_out,
    }  # fmt: skip


def _reason(
    answer: Answering, reader: Reader, finish: str, tokens: list[int], stops: list[str]
) -> tuple[str, str | None]:
    """Why the answer ended, and the text that ended it."""
    tokenizer = answer.llm.tokenizer
    if reader.finish(finish) == "tool_calls":
        return "tool_use", None
    if finish == "length":
        return "max_tokens", None
    if tokens and tokens[-1] in tokenizer.eos:
        return "end_turn", None
    text = tokenizer.decode(tokens)
    found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    return ("stop_sequence", min(found)[1]) if found else ("end_turn", None)
