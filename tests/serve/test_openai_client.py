"""The official client, as it comes from PyPI, against a real server."""

from __future__ import annotations

import json

import openai
import pytest
from conftest import MODEL

ASK = [{"role": "user", "content": "The secret number of Anna is 4821. What is the secret number of Anna?"}]
SCHEMA = {
    "type": "object", "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"], "additionalProperties": False,
}  # fmt: skip


def test_models(ai):
    assert [m.id for m in ai.models.list()] == [MODEL]
    assert ai.models.retrieve(MODEL).owned_by == "pronghorn"
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("gpt-4")


def test_chat(ai):
    made = ai.chat.completions.create(model=MODEL, messages=ASK, temperature=0)
    choice = made.choices[0]
    assert choice.message.content == "4821" and choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    usage = made.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    again = ai.chat.completions.create(model=MODEL, messages=ASK, temperature=0)
    assert again.usage.prompt_tokens_details.cached_tokens > 0
    assert again.choices[0].message.content == "4821"


def test_chat_stream_equals_the_whole(ai):
    asked = {"model": MODEL, "messages": ASK, "seed": 7, "max_tokens": 40, "n": 3}
    whole = ai.chat.completions.create(**asked)
    texts, finishes, usage = [""] * 3, [""] * 3, None
    with ai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for c in chunk.choices:
                texts[c.index] += c.delta.content or ""
                finishes[c.index] = c.finish_reason or finishes[c.index]
    assert texts == [c.message.content for c in whole.choices]
    assert finishes == [c.finish_reason for c in whole.choices]
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_structured_output(ai):
    form = {"type": "json_schema", "json_schema": {"name": "out", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        made = ai.chat.completions.create(
            model=MODEL, messages=ASK, response_format=form, seed=seed, max_tokens=200
        )
        value = json.loads(made.choices[0].message.content)
        assert set(value) == {"n", "ok"} and isinstance(value["ok"], bool)


def test_json_object(ai):
    made = ai.chat.completions.create(
        model=MODEL, messages=ASK, response_format={"type": "json_object"}, temperature=0, max_tokens=300,
        logit_bias={"206": -100},
    )  # fmt: skip
    if made.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(made.choices[0].message.content), dict)
    assert made.choices[0].message.content.lstrip()[0] == "{"


def test_logprobs(ai):
    made = ai.chat.completions.create(model=MODEL, messages=ASK, temperature=0, logprobs=True, top_logprobs=3)
    entries = made.choices[0].logprobs.content
    assert b"".join(bytes(e.bytes) for e in entries).decode() == made.choices[0].message.content
    for e in entries:
        assert len(e.top_logprobs) == 3 and e.top_logprobs[0].token == e.token  # greedy
        assert e.top_logprobs[0].logprob == pytest.approx(e.logprob, abs=1e-9)


def test_completions(ai):
    made = ai.completions.create(
        model=MODEL, prompt=["Once upon", "The dog"], max_tokens=5, temperature=0, n=2
    )
    assert [c.index for c in made.choices] == [0, 1, 2, 3]
    assert made.choices[0].text == made.choices[1].text != made.choices[2].text
    texts = [""] * 4
    for chunk in ai.completions.create(
        model=MODEL, prompt=["Once upon", "The dog"], max_tokens=5, temperature=0, n=2, stream=True
    ):
        for c in chunk.choices:
            texts[c.index] += c.text
    assert texts == [c.text for c in made.choices]


def test_embeddings(ai):
    made = ai.embeddings.create(model=MODEL, input=["a cat", "a dog"])  # base64 is what the client asks for
    plain = ai.embeddings.create(model=MODEL, input="a cat", encoding_format="float")
    assert made.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    short = ai.embeddings.create(model=MODEL, input="a cat", dimensions=16).data[0].embedding
    assert len(short) == 16 and sum(x * x for x in short) == pytest.approx(1, abs=1e-5)


def test_errors_are_the_clients_own(ai):
    with pytest.raises(openai.NotFoundError) as missing:
        ai.chat.completions.create(model="gpt-4", messages=ASK)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="temperature") as bad:
        ai.chat.completions.create(model=MODEL, messages=ASK, temperature=-1)
    assert bad.value.param == "temperature"
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    with pytest.raises(openai.BadRequestError, match="text only"):
        ai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": [image]}])
    with pytest.raises(openai.BadRequestError, match="1024"):
        ai.completions.create(model=MODEL, prompt="word " * 3000)


def test_the_asynchronous_client(server):
    import asyncio

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as ai:
            made = await asyncio.gather(
                *(ai.chat.completions.create(model=MODEL, messages=ASK, temperature=0) for _ in range(16))
            )
        return [m.choices[0].message.content for m in made]

    assert asyncio.run(ask()) == ["4821"] * 16
