"""The Responses API, with the official client against a real server."""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest
from conftest import MODEL
from scripted import CALL, NAME

from pronghorn.serve.responses.store import Kept, Responses

ASK = "The secret number of Anna is 4821. What is the secret number of Anna?"
WEATHER = {
    "type": "function", "name": "get_weather", "description": "Weather of a city.", "strict": True,
    "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer",
        "minimum": 1,
        "maximum": 9}}, "required": ["city", "days"], "additionalProperties": False,
    },
}  # fmt: skip


def test_a_text(ai):
    made = ai.responses.create(model=MODEL, input=ASK, temperature=0)
    assert made.output_text == "4821"
    assert made.status == "completed"
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens > 10
    assert made.output[0].type == "message" and made.output[0].status == "completed"


def test_items_and_instructions(scripted):
    ai, llm = scripted
    llm.say = "Yes."
    made = ai.responses.create(
        model=NAME,
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": "No lies."},
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {
                "type": "function_call",
                "call_id": "c1",
                "name": "get_weather",
                "arguments": '{"city": "Oslo"}',
            },
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        ],
    )
    assert made.output_text == "Yes."
    assert llm.prompt == (
        "<|system|>Be brief.\n\nNo lies.<|end|><|user|>Weather?<|end|><|assistant|><tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}\n'
        "</tool_call><|end|><|user|><tool_response>\nrain\n"
        "</tool_response><|end|><|assistant|>"
    )


def test_every_event_of_a_text(ai):
    asked: dict[str, Any] = {"model": MODEL, "input": ASK, "temperature": 0}
    events = list(ai.responses.create(**asked, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]  # fmt: skip
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done",
    "response.output_item.done",
                          "response.completed"]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (
        "".join(e.delta for e in events[4:-4]) == events[-4].text == events[-1].response.output_text == "4821"
    )
    item = events[2].item.id
    assert {e.item_id for e in events[3:-2]} == {item} == {events[-1].response.output[0].id}


def test_the_stream_helper(ai):
    with ai.responses.stream(model=MODEL, input=ASK, temperature=0) as stream:
        assert [e.snapshot for e in stream if e.type == "response.output_text.delta"][-1] == "4821"
        assert stream.get_final_response().output_text == "4821"


class Out(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    color: Literal["red", "blue"]
    n: int = pydantic.Field(ge=0, le=99)


def test_parse(ai):
    made = ai.responses.parse(model=MODEL, input="Say something.", text_format=Out)
    assert isinstance(made.output_parsed, Out)


def test_an_enforced_call(ai):
    for choice in ("required", {"type": "function", "name": "get_weather"}):
        made = ai.responses.create(
            model=MODEL, input="Weather?", tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False
        )
        (call,) = made.output
        assert call.type == "function_call" and call.name == "get_weather" and call.status == "completed"
        arguments = json.loads(call.arguments)
        assert arguments["city"] in ("Oslo", "Rome") and 1 <= arguments["days"] <= 9


def test_every_event_of_a_call(scripted):
    ai, llm = scripted
    llm.say = f"I look.\n{CALL}\n{CALL}"
    events = list(ai.responses.create(model=NAME, input="Weather?", tools=[WEATHER], stream=True))
    items = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.type for item in items] == ["message", "function_call", "function_call"]
    assert events[-1].response.output == items
    assert items[0].content[0].text == "I look."
    deltas = [e for e in events if e.type == "response.function_call_arguments.delta" and e.output_index == 1]
    assert len(deltas) > 2
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert "".join(e.delta for e in deltas) == done[0].arguments == items[1].arguments
    assert json.loads(items[1].arguments) == {"city": "Oslo", "days": 2}
    assert items[1].call_id != items[2].call_id
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_call_and_its_result_by_previous_response(scripted):
    ai, llm = scripted
    llm.say = CALL
    first = ai.responses.create(model=NAME, input="Weather?", tools=[WEATHER], instructions="Be brief.")
    llm.say = "Rain."
    second = ai.responses.create(
        model=NAME,
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": first.output[0].call_id, "output": "rain"}],
    )
    assert "Be brief" not in llm.prompt  # instructions are of one response
    assert llm.prompt.startswith(f"<|user|>Weather?<|end|><|assistant|>{CALL}<|end|>")
    third = ai.responses.create(model=NAME, previous_response_id=second.id, input="And Rome?")
    assert llm.prompt.endswith("<|assistant|>Rain.<|end|><|user|>And Rome?<|end|><|assistant|>")
    assert third.previous_response_id == second.id


def test_stored_responses(ai):
    made = ai.responses.create(model=MODEL, input=ASK, temperature=0)
    assert ai.responses.retrieve(made.id) == made
    ai.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        ai.responses.retrieve(made.id)
    unkept = ai.responses.create(model=MODEL, input=ASK, store=False, max_output_tokens=4)
    with pytest.raises(openai.NotFoundError):
        ai.responses.create(model=MODEL, input="x", previous_response_id=unkept.id)


def test_an_answer_that_is_cut(scripted):
    ai, llm = scripted
    llm.say = CALL
    made = ai.responses.create(model=NAME, input="x", tools=[WEATHER], max_output_tokens=len(
        llm.tokenizer.encode(CALL[:60], bos=False)))  # fmt: skip
    assert made.status == "incomplete" and made.incomplete_details.reason == "max_output_tokens"
    assert made.output[0].type == "function_call" and made.output[0].status == "incomplete"
    llm.say = ""
    assert ai.responses.create(model=NAME, input="x").output_text == ""


@pytest.mark.parametrize(
    "body",
    [
        {}, {"input": 3}, {"input": []}, {"input": [{"type": "message"}]}, {"input": [{"type": "image"}]},
        {"input": [{"type": "function_call", "name": "x"}]}, {"input": [{"type": "function_call_output"}]},
        {"input": [{"type": "reasoning"}]}, {"input": "x", "max_output_tokens": 0}, {"input": "x",
         "temperature": -1},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"input": "x", "tools": [{"type": "web_search"}]}, {"input": "x", "tools": [{"type": "function"}]},
        {"input": "x", "tools": [WEATHER, WEATHER]}, {"input": "x", "tool_choice": "required"},
        {"input": "x", "tools": [WEATHER], "tool_choice": {"type": "function", "name": "rm"}},
        {"input": "x", "tools": [{**WEATHER, "parameters": {"not": {}}}], "tool_choice": "required"},
        {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}},
        {"input": "x", "background": True},
    ],
    ids=lambda body: json.dumps(body)[:60],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_refusals(client: httpx.Client, body, stream):
    answer = client.post("/v1/responses", json={**body, "stream": stream})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_the_store_is_bounded():
    store = Responses(n_kept=3, n_bytes=20_000)
    for i in range(5):
        store.put(Kept("a", {"id": f"r{i}"}, ()))
    assert len(store) == 3 and store.get("r1", "a") is None
    assert store.get("r4", "b") is None  # another key's
    assert store.get("r2", "a") is not None
    store.put(Kept("a", {"id": "big"}, ({"role": "user", "content": "x" * 17_000},)))
    assert store.get("r2", "a") is not None and store.get("r3", "a") is None
    store.put(Kept("a", {"id": "too big"}, ({"role": "user", "content": "x" * 30_000},)))
    assert len(store) == 0 and store.size == 0
