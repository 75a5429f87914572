"""The Messages API, with the official client against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from conftest import MODEL, Running
from scripted import CALL, NAME, ScriptedLLM, scripted_server

ASK: list[Any] = [
    {"role": "user", "content": "The secret number of Anna is 4821. What is the secret number of Anna?"}
]
WEATHER: dict[str, Any] = {
    "name": "get_weather", "description": "Weather of a city.",
    "input_schema": {
        "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer",
        "minimum": 1,
        "maximum": 9}}, "required": ["city", "days"], "additionalProperties": False,
    },
}  # fmt: skip
GREEDY = {"temperature": 0}  # no arguments of the client's any more


@pytest.fixture(scope="module")
def ai(server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple[anthropic.Anthropic, ScriptedLLM]]:
    for url, llm in scripted_server():
        with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as made:
            yield made, llm


def test_a_text(ai):
    made = ai.messages.create(model=MODEL, max_tokens=20, messages=ASK, extra_body=GREEDY)
    assert [block.text for block in made.content] == ["4821"]
    assert (made.role, made.stop_reason, made.stop_sequence) == ("assistant", "end_turn", None)
    usage = made.usage
    counted = ai.messages.count_tokens(model=MODEL, messages=ASK).input_tokens
    assert usage.input_tokens + usage.cache_read_input_tokens == counted
    assert usage.output_tokens > 0


def test_streams(ai):
    with ai.messages.stream(model=MODEL, max_tokens=20, messages=ASK, extra_body=GREEDY) as stream:
        assert "".join(stream.text_stream) == "4821"
        final = stream.get_final_message()
    assert final.content[0].text == "4821" and final.stop_reason == "end_turn"
    raw = ai.messages.create(model=MODEL, max_tokens=20, messages=ASK, extra_body=GREEDY, stream=True)
    kinds = [event.type for event in raw]
    assert kinds[:2] == ["message_start", "content_block_start"]  # the client drops pings
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


def test_blocks_and_system(scripted):
    ai, llm = scripted
    llm.say = "Yes."
    ai.messages.create(
        model=NAME, max_tokens=9, system=[{"type": "text", "text": "Be brief."}],
        extra_body={"top_k": 5, "top_p": 0.5}, stop_sequences=["#"],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {"role": "assistant", "content": [
                {"type": "text", "text": "Hm."},
                {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Oslo"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "tool_result", "tool_use_id": "t2", "content": "no", "is_error": True},
                {"type": "text", "text": "So?"}]},
        ],
    )  # fmt: skip
    assert llm.prompt == (
        "<|system|>Be brief.<|end|><|user|>Weather?<|end|><|assistant|>Hm.\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}\n'
        "</tool_call><|end|><|user|><tool_response>\nrain\n"
        "</tool_response><|end|><|user|><tool_response>\nError: no\n</tool_response><|end|><|user|>So?<|end|>"
        "<|assistant|>"
    )
    assert llm.request.stop == ("#",) and llm.request.max_tokens == 9 and len(llm.request.use) == 2


def test_the_beginning_of_an_answer(scripted):
    ai, llm = scripted
    llm.say = " is it."
    ai.messages.create(
        model=NAME, max_tokens=9, messages=[*ASK, {"role": "assistant", "content": "This"}]
    )  # fmt: skip
    assert llm.prompt.endswith("<|assistant|>This")


def test_an_enforced_use(ai):
    for choice in (
        {"type": "any", "disable_parallel_tool_use": True},
        {"type": "tool", "name": "get_weather"},
    ):
        made = ai.messages.create(
            model=MODEL, max_tokens=200, messages=ASK, tools=[WEATHER], tool_choice=choice
        )  # fmt: skip
        (use,) = made.content
        assert made.stop_reason == "tool_use" and use.type == "tool_use" and use.name == "get_weather"
        assert use.input["city"] in ("Oslo", "Rome") and 1 <= use.input["days"] <= 9


def test_a_use_streams(scripted):
    ai, llm = scripted
    llm.say = f"I look.\n{CALL}\n{CALL}"
    with ai.messages.stream(model=NAME, max_tokens=500, messages=ASK, tools=[WEATHER]) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert len(pieces) > 4
    assert [block.type for block in final.content] == ["text", "tool_use", "tool_use"]
    assert final.content[0].text == "I look."
    assert final.content[1].input == {"city": "Oslo", "days": 2}
    assert final.content[1].id != final.content[2].id
    assert final.stop_reason == "tool_use"
    whole = ai.messages.create(model=NAME, max_tokens=500, messages=ASK, tools=[WEATHER])
    assert [block.type for block in whole.content] == ["text", "tool_use", "tool_use"]
    assert whole.usage == final.usage


def test_why_it_stopped(ai, scripted):
    made = ai.messages.create(
        model=MODEL, max_tokens=20, messages=ASK, extra_body=GREEDY, stop_sequences=["9", "2"]
    )
    assert (made.content[0].text, made.stop_reason, made.stop_sequence) == ("48", "stop_sequence", "2")
    made = ai.messages.create(model=MODEL, max_tokens=1, messages=ASK, extra_body=GREEDY)
    assert made.stop_reason == "max_tokens"
    client, llm = scripted
    llm.say = CALL
    n = len(llm.tokenizer.encode(CALL[:60], bos=False))
    made = client.messages.create(model=NAME, max_tokens=n, messages=ASK, tools=[WEATHER])
    assert made.stop_reason == "max_tokens" and made.content[0].type == "tool_use"


def test_tokens_of_tools_are_counted(ai):
    plain = ai.messages.count_tokens(model=MODEL, messages=ASK).input_tokens
    assert ai.messages.count_tokens(model=MODEL, messages=ASK, tools=[WEATHER]).input_tokens > plain + 20


def test_structured_output(ai):
    schema = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"],
              "additionalProperties": False}  # fmt: skip
    made = ai.messages.create(
        model=MODEL,
        max_tokens=50,
        messages=ASK,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert json.loads(made.content[0].text)["x"] in (1, 2)


BODY = {"model": MODEL, "max_tokens": 9, "messages": ASK}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({**BODY, "max_tokens": None}, 400), ({**BODY, "max_tokens": 0}, 400), ({**BODY, "messages": []},
         400),
        ({**BODY, "messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400),
        ({**BODY, "messages": [{"role": "user", "content": [{"type": "tool_use", "id": "x",
         "name": "y"}]}]}, 400),
        ({**BODY, "messages": [{"role": "assistant", "content": [{"type": "tool_result",
         "tool_use_id": "x"}]}]}, 400),
        ({**BODY, "messages": [{"role": "assistant", "content": "x"}]}, 400),
        ({**BODY, "tool_choice": {"type": "any"}}, 400), ({**BODY, "tools": [{"name": "x"}]}, 400),
        ({**BODY, "tools": [WEATHER], "tool_choice": {"type": "tool"}}, 400),
        ({**BODY, "tools": [WEATHER], "tool_choice": {"type": "tool", "name": "rm"}}, 400),
        ({**BODY, "tools": [{**WEATHER, "name": f"t{i}"} for i in range(200)]}, 400),
        ({**BODY, "stop_sequences": [""]}, 400), ({**BODY, "model": "claude"}, 404),
        ({**BODY, "tools": [{**WEATHER, "input_schema": {"not": {}}}], "tool_choice": {"type": "any"}}, 400),
    ],
    ids=lambda case: json.dumps(case)[-60:],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_refusals(client: httpx.Client, body, status, stream):
    answer = client.post("/v1/messages", json={**body, "stream": stream})
    assert answer.status_code == status, answer.text
    error = answer.json()
    kind = {400: "invalid_request_error", 404: "not_found_error"}[status]
    assert error["type"] == "error" and error["error"]["type"] == kind and error["error"]["message"]


def test_the_client_knows_the_errors(ai):
    with pytest.raises(anthropic.NotFoundError, match="no model"):
        ai.messages.create(model="claude", max_tokens=9, messages=ASK)
    with pytest.raises(anthropic.BadRequestError):
        ai.messages.count_tokens(model=MODEL, messages=[])
