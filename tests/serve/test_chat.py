"""/v1/chat/completions beyond what the official client sends."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

URL = "/v1/chat/completions"
ASK = [{"role": "user", "content": "Tell me about a dog."}]


def answer(client, **fields: Any) -> dict[str, Any]:
    got = client.post(URL, json={"messages": ASK, "temperature": 0, **fields})
    assert got.status_code == 200, got.text
    return got.json()


def text(client, **fields: Any) -> str:
    return answer(client, **fields)["choices"][0]["message"]["content"]


def refused(client, **fields: Any) -> dict[str, Any]:
    got = client.post(URL, json={"messages": ASK, **fields})
    assert got.status_code == 400, got.text
    error = got.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


def events(client, **fields: Any) -> list[dict[str, Any]]:
    got = client.post(URL, json={"messages": ASK, "temperature": 0, "stream": True, **fields})
    assert got.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in got.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_seed_and_sampling(client):
    hot = {"temperature": 1.5, "max_tokens": 24}
    assert text(client, seed=1, **hot) == text(client, seed=1, **hot)
    assert len({text(client, **hot) for _ in range(4)}) > 1  # without a seed, another one each time
    greedy = text(client, max_tokens=24)
    assert text(client, temperature=1, top_k=1, max_tokens=24) == greedy
    assert text(client, temperature=1, top_p=0, max_tokens=24) == greedy
    assert text(client, temperature=1, min_p=1, max_tokens=24) == greedy
    assert text(client, max_tokens=24, repetition_penalty=5.0) != greedy
    assert text(client, max_tokens=24, frequency_penalty=2, presence_penalty=2) != greedy


def test_stop(client):
    whole = text(client, max_tokens=40)
    stop = whole[10:13]
    cut = answer(client, max_tokens=40, stop=[stop, "never"])["choices"][0]
    assert cut["message"]["content"] == whole[: whole.index(stop)] and cut["finish_reason"] == "stop"
    streamed = events(client, max_tokens=40, stop=stop)
    parts = [e["choices"][0]["delta"].get("content", "") for e in streamed]
    assert "".join(parts) == cut["message"]["content"]


def test_length(client):
    cut = answer(client, max_completion_tokens=3)
    assert cut["choices"][0]["finish_reason"] == "length" and cut["usage"]["completion_tokens"] == 3
    assert text(client, max_tokens=3) == cut["choices"][0]["message"]["content"]


def test_a_prompt_that_is_too_long(client):
    long = [{"role": "user", "content": "word " * 1500}]
    assert "context is 1024" in refused(client, messages=long)["message"]
    got = answer(client, messages=long, pronghorn={"truncate": True, "ignore_eos": True})
    assert got["usage"]["completion_tokens"] == 512


def test_logit_bias_forbids(client):
    first = answer(client, max_tokens=1, logprobs=True)["choices"][0]["logprobs"]["content"][0]["token"]
    (token,) = client.post("/tokenize", json={"prompt": first}).json()["tokens"]
    other = answer(client, max_tokens=1, logprobs=True, logit_bias={str(token): -100})
    assert other["choices"][0]["logprobs"]["content"][0]["token"] != first


def test_regex_and_methods_of_a_request(client):
    own = {"regex": "[0-9]{5}-[a-f]{2}", "use": ["token-recycling"]}
    assert re.fullmatch(own["regex"], text(client, temperature=1, pronghorn=own))


def test_trace_and_receipt(client):
    chunks = events(client, max_tokens=24, pronghorn={"trace": True})
    tokens = [t for c in chunks for t in c.get("pronghorn", {}).get("tokens", [])]
    content = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert "".join(t["text"] for t in tokens) == content
    assert {t["origin"] for t in tokens} <= {"model", "drafted", "forced"}
    receipt = chunks[-1]["pronghorn"]["receipt"]
    assert receipt["new_tokens"] == len(tokens)
    kept = client.get(f"/v1/receipts/{chunks[0]['id']}")
    assert kept.status_code == 200 and kept.json()["new_tokens"] == len(tokens)
    assert client.get("/v1/receipts/chatcmpl-0").status_code == 404


def test_logprobs_stream_as_they_are_whole(client):
    whole = answer(client, max_tokens=12, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    streamed = events(client, max_tokens=12, logprobs=True, top_logprobs=2)
    known = [e["choices"][0]["logprobs"] for e in streamed if e["choices"]]
    assert [x for k in known if k for x in k["content"]] == whole


def test_messages_of_every_kind(client):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "Three."},
        {"role": "user", "content": "And?", "name": "ann"},
    ]
    plain = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One two"},
        *messages[2:],
    ]
    ids = [client.post("/tokenize", json={"messages": m}).json()["tokens"] for m in (messages, plain)]
    assert ids[0] == ids[1]
    answer(client, messages=messages, max_tokens=1)


def test_harmless_fields_are_ignored(client):
    answer(
        client, max_tokens=1, store=True, metadata={"a": "b"}, service_tier="auto", user="u", n=1,
        parallel_tool_calls=True, reasoning_effort="low", stop=None, logit_bias=None, seed=None, top_p=None,
        something_new={"x": [1]},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"seed": 10**40}, "seed"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"logit_bias": {"no": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"pronghorn": {"deadline": -1}}, "pronghorn.deadline"),
    ],
)
def test_mistakes_are_named(client, fields, param):
    assert refused(client, **fields)["param"] == param


def test_an_unknown_field_of_ours_is_named(client):
    assert "did you mean 'priority'" in refused(client, pronghorn={"prioriti": 1})["message"]
    assert "did you mean" in refused(client, pronghorn={"use": ["token-recyclin"]})["message"]


def test_methods_that_a_request_may_not_bring(client):
    refused(client, pronghorn={"use": ["int8"]})  # weights are chosen at load


def test_shapers_that_leave_nothing_harm_only_their_request(client):
    for use in (["repetition-penalty:penalty=1e-320", "top-p:p=0.5"], ["logit-bias:bias=99999:5"]):
        refused(client, pronghorn={"use": use})
    answer(client, max_tokens=1)


def test_a_token_outside_the_vocabulary_is_refused(client):
    refused(client, logit_bias={"99999999": 5})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#/nowhere"},
        {"type": "string", "pattern": "(((((a{1,9999}){1,9999}){1,9999})"},
        {"enum": []},
    ],
    ids=str,
)
def test_schemas_that_cannot_be_followed(client, schema):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    refused(client, response_format=form)


@pytest.mark.parametrize("method", ["prefix", "vtc", "weight.int8", "swap", "kvfmt.int8"])
def test_what_is_the_whole_engines_is_refused(client, method: str):
    assert "whole engine" in refused(client, pronghorn={"use": [method]})["message"]


def test_a_pattern_holds_on_every_api(client):
    own = {"regex": "[0-9]{4}"}
    got = client.post("/v1/responses", json={"input": "A number", "pronghorn": own})
    assert re.fullmatch("[0-9]{4}", got.json()["output"][0]["content"][0]["text"])
    ask = {"messages": [{"role": "user", "content": "A number"}], "max_tokens": 20, "pronghorn": own}
    got = client.post("/v1/messages", json=ask | {"model": "pronghorn-tiny"})
    assert re.fullmatch("[0-9]{4}", got.json()["content"][0]["text"])
    form = {"type": "json_object"}
    assert "choose one" in refused(client, response_format=form, pronghorn=own)["message"]
