"""/v1/completions, and the requests of lm-eval's local-completions model, replayed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import MODEL

URL = "/v1/completions"


def ask(client, **fields: Any) -> dict[str, Any]:
    got = client.post(URL, json={"model": MODEL, "temperature": 0, **fields})
    assert got.status_code == 200, got.text
    return got.json()


def ids_of(client, text: str) -> list[int]:
    return client.post("/tokenize", json={"prompt": text}).json()["tokens"]


def test_prompts_of_every_form_agree(client):
    text = "Once upon a time"
    ids = ids_of(client, text)
    found = [ask(client, prompt=p)["choices"][0]["text"] for p in (text, [text], ids, [ids])]
    assert len(set(found)) == 1 and found[0]
    assert (
        ask(client, prompt=[text, "The dog"])["choices"][1]["text"]
        == ask(client, prompt="The dog")["choices"][0]["text"]
    )


def test_sixteen_tokens_unless_told_otherwise(client):
    assert ask(client, prompt="Once upon", pronghorn={"ignore_eos": True})["usage"]["completion_tokens"] == 16


def test_echo_without_new_tokens_scores_the_prompt(client):
    text = "The dog was happy."
    (choice,) = ask(client, prompt=text, echo=True, max_tokens=0, logprobs=2)["choices"]
    known = choice["logprobs"]
    assert choice["text"] == text == "".join(known["tokens"])
    assert known["token_logprobs"][0] is None and known["top_logprobs"][0] is None
    assert all(x <= 0 for x in known["token_logprobs"][1:])
    assert [text[o:].startswith(t) for t, o in zip(known["tokens"], known["text_offset"], strict=True)]


def test_lm_eval_loglikelihood(client):
    """What `LocalCompletionsAPI._create_payload` sends, and what `parse_logprobs` makes of the answer."""
    context, continuation = "The secret number of Anna is 4821. Her number is", " 4821"
    ctx, whole = ids_of(client, context), ids_of(client, context + continuation)
    assert whole[: len(ctx)] == ctx
    asked = {"prompt": [whole, ctx], "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    choices = sorted(ask(client, **asked)["choices"], key=lambda c: c["index"])
    for choice, ids, n in zip(choices, [whole, ctx], [len(ctx), 1], strict=True):
        values = choice["logprobs"]["token_logprobs"]
        tops = choice["logprobs"]["top_logprobs"]
        assert len(values) == len(tops) == len(ids) + 1  # and the new token
        assert np.isfinite(sum(values[n:-1]))
        for value, top in zip(values[n:-1], tops[n:-1], strict=True):
            assert max(top.values()) >= value  # greedy where equal
    text = ask(client, prompt=[context + continuation], max_tokens=1, logprobs=1, echo=True)["choices"][0]
    assert text["logprobs"]["token_logprobs"] == choices[0]["logprobs"]["token_logprobs"]


def test_scores_are_those_of_the_python_face(client):
    from pronghorn import LLM

    text = "Once upon a time there was a dog."
    llm = LLM(MODEL)
    expected = llm.score(text)
    llm.close()
    got = ask(client, prompt=text, echo=True, max_tokens=0, logprobs=0)["choices"][0]["logprobs"]
    assert got["token_logprobs"][1:] == pytest.approx(expected, abs=1e-9)


def test_lm_eval_generate_until(client):
    asked = {"prompt": [ids_of(client, "Once upon a time")], "max_tokens": 32, "seed": 1234}
    plain = ask(client, **asked, stop=["<|end|>"])["choices"][0]["text"]
    cut = ask(client, **asked, stop=[".", "<|end|>"])["choices"][0]["text"]
    assert cut == plain.split(".")[0]


def test_streams_with_logprobs(client):
    import json

    whole = ask(client, prompt="The dog", logprobs=1)["choices"][0]
    got = client.post(URL, json={"prompt": "The dog", "temperature": 0, "logprobs": 1, "stream": True})
    chunks = [json.loads(x[6:]) for x in got.text.split("\n\n") if x.startswith("data: {")]
    for key in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        streamed = [v for c in chunks for v in c["choices"][0]["logprobs"][key]]
        assert streamed == whole["logprobs"][key], key


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": ""},
        {"prompt": [1, "a"]},
        {"prompt": [-1]},
        {"prompt": [4096]},
        {"prompt": [10**20]},
        {"prompt": ["x"] * 300},
        {"prompt": "x", "suffix": "y"},
        {"prompt": "x", "logprobs": 21},
        {"prompt": "x", "max_tokens": 0},
        {"prompt": "x", "best_of": 3},
        {"prompt": None},
        {"prompt": {"a": 1}},
    ],
    ids=lambda f: str(f)[:40],
)
def test_mistakes_are_refused(client, fields):
    got = client.post(URL, json=fields)
    assert got.status_code == 400, got.text
    assert set(got.json()["error"]) == {"message", "type", "param", "code"}
