"""Tools in chat completions, with the official client against a real server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pydantic
import pytest
from conftest import MODEL
from scripted import CALL, NAME

ASK: list[Any] = [{"role": "user", "content": "Weather?"}]
PARAMETERS: dict[str, Any] = {
    "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer",
    "minimum": 1,
    "maximum": 9}}, "required": ["city", "days"], "additionalProperties": False,
}  # fmt: skip
WEATHER: dict[str, Any] = {
    "type": "function", "function": {"name": "get_weather", "description": "Weather.",
    "parameters": PARAMETERS}
}  # fmt: skip
ADD: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
    "additionalProperties": False}}}  # fmt: skip
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def valid(arguments: str) -> bool:
    data = json.loads(arguments)
    return list(data) == ["city", "days"] and data["city"] in ("Oslo", "Rome") and 1 <= data["days"] <= 9


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_enforced(ai, choice):
    for seed in range(3):
        made = ai.chat.completions.create(
            model=MODEL,
            messages=ASK,
            tools=[WEATHER, ADD],
            tool_choice=choice,
            seed=seed,
            parallel_tool_calls=False,
        ).choices[0]
        assert made.finish_reason == "tool_calls" and made.message.content is None
        (call,) = made.message.tool_calls
        assert call.id and call.type == "function"
        if call.function.name == "get_weather":
            assert valid(call.function.arguments)
        else:
            assert choice == "required" and json.loads(call.function.arguments)["a"] in (1, 2)


def test_only_allowed_tools_are_called(ai):
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
        {"type": "function", "function": {"name": "add"}}]}}  # fmt: skip
    made = ai.chat.completions.create(
        model=MODEL, messages=ASK, tools=[WEATHER, ADD], tool_choice=allowed, max_tokens=400
    ).choices[0]  # fmt: skip
    assert {call.function.name for call in made.message.tool_calls} == {"add"}


def test_enforced_streams(ai):
    asked = {"model": MODEL, "messages": ASK, "tools": [WEATHER], "tool_choice": NAMED, "seed": 3}
    whole = ai.chat.completions.create(**asked).choices[0].message
    name, arguments, n_deltas, finish = "", "", 0, None
    for chunk in ai.chat.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        assert not choice.delta.content
        finish = choice.finish_reason or finish
        for call in choice.delta.tool_calls or ():
            assert call.index == 0
            name += call.function.name or ""
            arguments += call.function.arguments
            n_deltas += 1
    assert (name, finish) == ("get_weather", "tool_calls")
    assert arguments == whole.tool_calls[0].function.arguments and valid(arguments)


def test_what_a_model_writes_streams(scripted):
    ai, llm = scripted
    llm.say = f"I look.\n{CALL}\n{CALL}"
    with ai.chat.completions.stream(model=NAME, messages=ASK, tools=[WEATHER]) as stream:
        deltas = [e.arguments_delta for e in stream if e.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion().choices[0]
    assert len(deltas) > 4
    assert final.message.content == "I look." and final.finish_reason == "tool_calls"
    assert [json.loads(c.function.arguments) for c in final.message.tool_calls] == [
        {"city": "Oslo", "days": 2}
    ] * 2
    whole = ai.chat.completions.create(model=NAME, messages=ASK, tools=[WEATHER]).choices[0]
    assert whole.message.content == "I look." and len(whole.message.tool_calls) == 2
    one = ai.chat.completions.create(
        model=NAME, messages=ASK, tools=[WEATHER], parallel_tool_calls=False
    ).choices[0]  # fmt: skip
    assert len(one.message.tool_calls) == 1
    none = ai.chat.completions.create(model=NAME, messages=ASK, tools=[WEATHER], tool_choice="none").choices[
        0
    ]
    assert none.message.content == llm.say and none.finish_reason == "stop"
    assert "get_weather" not in llm.prompt


def test_text_beside_tools_is_content(scripted):
    ai, llm = scripted
    llm.say = "No <tool> needed: {} < 3."
    made = ai.chat.completions.create(model=NAME, messages=ASK, tools=[WEATHER]).choices[0]
    assert (
        made.message.content == llm.say and made.message.tool_calls is None and made.finish_reason == "stop"
    )


def test_results_go_back(scripted):
    ai, llm = scripted
    llm.say = CALL
    asked = ai.chat.completions.create(model=NAME, messages=ASK, tools=[WEATHER]).choices[0].message
    llm.say = "Rain."
    result = {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "rain"}
    made = ai.chat.completions.create(model=NAME, messages=[*ASK, asked, result], tools=[WEATHER]).choices[0]
    assert made.message.content == "Rain."
    assert llm.prompt.endswith(
        f"<|assistant|>{CALL}<|end|><|user|><tool_response>\nrain\n</tool_response><|end|><|assistant|>"
    )


class GetWeather(pydantic.BaseModel):
    city: str
    days: int


def test_the_parse_helper(scripted):
    ai, llm = scripted
    llm.say = CALL.replace("get_weather", "GetWeather")
    made = ai.chat.completions.parse(
        model=NAME, messages=ASK, tools=[openai.pydantic_function_tool(GetWeather)]
    )
    assert made.choices[0].message.tool_calls[0].function.parsed_arguments == GetWeather(city="Oslo", days=2)
    assert len(llm.request.use) == 1  # the tool is strict: a grammar


TOOLS = {"messages": ASK, "tools": [WEATHER]}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": ASK, "tool_choice": "required"}, {**TOOLS, "tool_choice": "maybe"},
        {**TOOLS, "tool_choice": {"type": "function", "function": {"name": "rm"}}}, {"messages": ASK,
         "tools": [{}]},
        {"messages": ASK, "tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"messages": ASK, "tools": [WEATHER, WEATHER]}, {"messages": ASK, "tools": [WEATHER] * 1000},
        {"messages": [*ASK, {"role": "assistant", "tool_calls": [{"id": "x"}]}]},
        {"messages": ASK, "tools": [{"type": "function", "function": {"name": "a",
         "parameters": {"type": "array"}}}]},
        {**TOOLS, "pronghorn": {"regex": "a+"}},
    ],
    ids=lambda body: json.dumps(body)[-60:],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_refusals(client: httpx.Client, body, stream):
    answer = client.post("/v1/chat/completions", json={**body, "stream": stream})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
