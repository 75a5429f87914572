"""/v1/responses and /v1/responses/{id}."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from pronghorn.serve.body import StrictRoute
from pronghorn.serve.context import Context, user_of
from pronghorn.serve.errors import ApiError, json_response, responses
from pronghorn.serve.generation import Answering, answering, encode_chat, new_id, options, usage
from pronghorn.serve.responses.body import ResponseBody, as_messages, read_choice, read_tools, with_call
from pronghorn.serve.responses.output import Event, Output
from pronghorn.serve.responses.store import Kept, Responses
from pronghorn.serve.sse import EventStream, event, whole
from pronghorn.serve.tools import Plan

if TYPE_CHECKING:
    from pronghorn.serve.async_llm import AsyncLLM


def router(ctx: Context) -> APIRouter:
    made = APIRouter(tags=["responses"], route_class=StrictRoute)
    kept = Responses()

    @made.post("/v1/responses", responses=responses(404, 408, 413, 415, 429, 504))
    async def create_response(request: Request, body: ResponseBody) -> Response:
        """Answer a conversation, item by item."""
        user = user_of(request, body.safety_identifier or body.user or "")
        job = _Job(ctx, kept, body, user, _owner(request))
        return EventStream(job.stream(), job.failed) if body.stream else await whole(request, job.answer())

    @made.get("/v1/responses/{response_id}", responses=responses(404))
    async def get_response(request: Request, response_id: str) -> Response:
        """A response that was stored."""
        return json_response(_found(kept, response_id, _owner(request)).response)

    @made.delete("/v1/responses/{response_id}", responses=responses(404))
    async def delete_response(request: Request, response_id: str) -> Response:
        """Forget a response."""
        _found(kept, response_id, _owner(request))
        kept.drop(response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    return made


def _owner(request: Request) -> str:
    key: str = request.scope.get("state", {}).get("key", "")
    return key


def _found(kept: Responses, id_: str, owner: str) -> Kept:
    found = kept.get(id_, owner)
    if found is None:
        raise ApiError(404, f"no response {id_[:80]!r}: it was not stored, or given up for newer ones")
    return found


class _Job:
    """One request on its way through."""

    def __init__(self, ctx: Context, kept: Responses, body: ResponseBody, user: str, owner: str) -> None:
        self.ctx, self.kept, self.body, self.user, self.owner = ctx, kept, body, user, owner
        self.created = int(time.time())
        self.output = Output()
        self.response: dict[str, Any] = {}
        self.n_events = 0

    # ------------------------------------------------------------------ what is asked

    def _plan(self, llm: AsyncLLM) -> Plan:
        body = self.body
        choice = read_choice(body.tool_choice, body.parallel_tool_calls is not False)
        return Plan(llm.tokenizer, read_tools(body.tools or []), choice, body.schema_wanted)

    def _messages(self) -> list[dict[str, Any]]:
        """The conversation so far and what is new, without instructions."""
        before: tuple[dict[str, Any], ...] = ()
        if self.body.previous_response_id:
            before = _found(self.kept, self.body.previous_response_id, self.owner).messages
        return [*before, *as_messages(self.body.input)]

    def _led(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Instructions go first, before a system message of the conversation's own."""
        words = self.body.instructions
        if not words:
            return messages
        if messages[0]["role"] == "system":
            return [{**messages[0], "content": f"{words}\n\n{messages[0]['content']}"}, *messages[1:]]
        return [{"role": "system", "content": words}, *messages]

    def _options(self, plan: Plan) -> dict[str, Any]:
        given = options(self.body.sampling, self.user, plan.constraint())
        return given | {"truncate": given["truncate"] or self.body.truncation == "auto"}

    # ------------------------------------------------------------------ what is answered

    def _begin(self, answer: Answering, given: dict[str, Any]) -> None:
        body = self.body
        form = body.text.format if body.text else None
        self.response = {
            "id": new_id("resp", answer.id), "object": "response", "created_at": self.created,
            "status": "in_progress", "background": False, "error": None, "incomplete_details": None,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {}, "model": answer.llm.name, "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": None, "summary": None}, "service_tier": "default",
            "store": body.store is not False, "temperature": given["temperature"],
            "text": {"format": _plain(form) if form else {"type": "text"}},
            "tool_choice": _plain(body.tool_choice) if body.tool_choice else "auto",
            "tools": [_plain(tool) for tool in body.tools or []], "top_logprobs": 0,
            "top_p": 1.0 if body.top_p is None else body.top_p, "truncation": body.truncation or "disabled",
            "usage": None, "user": body.user,
        }  # fmt: skip

    def _finish(self, answer: Answering, finish: str, messages: list[dict[str, Any]]) -> None:
        """The response as it ends, kept if it may be."""
        cut = finish == "length"
        counted = usage(answer.answers, len(answer.ids))
        cached = counted["prompt_tokens_details"]["cached_tokens"]
        self.response |= {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self.output.items,
            "completed_at": None if cut else int(time.time()),
            "usage": {
                "input_tokens": counted["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
                "output_tokens": counted["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counted["total_tokens"],
            },
        }
        if self.body.sampling.extension.trace:
            self.response["pronghorn"] = {"receipt": answer.receipt}
        if self.response["store"]:
            said = tuple(_with_output(messages, self.output.items))
            self.kept.put(Kept(self.owner, self.response, said))

    async def _run(self) -> AsyncGenerator[Event, None]:
        """Every event of the response, in order."""
        async with self.ctx.model(self.body.model) as llm:
            plan = self._plan(llm)
            given = self._options(plan)
            messages = self._messages()
            if not messages:
                raise ApiError(400, "the input holds no message: add one", "input")
            ids = await encode_chat(self.ctx, llm, self._led(messages), plan.shown)
            async with answering(self.ctx, llm, ids, given, self.body.max_output_tokens) as answer:
                self._begin(answer, given)
                yield {"type": "response.created", "response": dict(self.response)}
                yield {"type": "response.in_progress", "response": dict(self.response)}
                reader, finish = plan.reader(given["stop"], ids), ""
                async for delta in answer:
                    for each in self.output.feed(reader.feed(delta.text, delta.tokens)):
                        yield each
                    finish = delta.finish or finish
                for each in self.output.feed(reader.end()):
                    yield each
                if reader.done:
                    finish = "stop"
                for each in self.output.close("incomplete" if finish == "length" else "completed"):
                    yield each
                self._finish(answer, finish, messages)
                yield {"type": f"response.{self.response['status']}", "response": dict(self.response)}

    async def answer(self) -> Response:
        async for _ in self._run():
            pass
        return json_response(self.response)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        async for each in self._run():
            yield self._sent(each)

    def _sent(self, each: Event) -> bytes:
        data = event(each | {"sequence_number": self.n_events}, each["type"])
        self.n_events += 1
        return data

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that broke off."""
        code = "invalid_prompt" if error.status == 400 else "server_error"
        self.response |= {"status": "failed", "error": {"code": code, "message": error.message}}
        return self._sent({"type": "response.failed", "response": self.response})


def _plain(value: Any) -> Any:
    """A part of a body as JSON, for the response that repeats it."""
    return value if isinstance(value, str) else value.model_dump(by_alias=True)


def _with_output(messages: list[dict[str, Any]], items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with the answer in it."""
    out = messages
    for item in items:
        if item["type"] == "message":
            out = [*out, {"role": "assistant", "content": "".join(part["text"] for part in item["content"])}]
        else:
            out = with_call(out, item["call_id"], item["name"], item["arguments"])
    return out
