"""/v1/embeddings and the tokenizer's endpoints."""

from __future__ import annotations

import base64

import numpy as np
import pytest

URL = "/v1/embeddings"


def vectors(client, **fields) -> np.ndarray:
    got = client.post(URL, json=fields)
    assert got.status_code == 200, got.text
    return np.array([d["embedding"] for d in got.json()["data"]])


def test_embeddings_are_those_of_the_python_face(client):
    from pronghorn import LLM

    llm = LLM("pronghorn-tiny")
    expected = llm.embed(["a cat", "two dogs run"])
    llm.close()
    got = vectors(client, input=["a cat", "two dogs run"])
    assert got.astype(np.float32).tobytes() == expected.tobytes()
    assert np.linalg.norm(got, axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_base64_ids_and_usage(client):
    got = client.post(URL, json={"input": "a cat", "encoding_format": "base64"}).json()
    plain = vectors(client, input="a cat")[0].astype("<f4")
    assert base64.b64decode(got["data"][0]["embedding"]) == plain.tobytes()
    ids = client.post("/tokenize", json={"prompt": "a cat"}).json()["tokens"]
    assert np.array_equal(vectors(client, input=ids)[0].astype("<f4"), plain)
    assert got["usage"] == {"prompt_tokens": len(ids), "total_tokens": len(ids)}


def test_fewer_dimensions_are_scaled_again(client):
    whole, short = vectors(client, input="a cat")[0], vectors(client, input="a cat", dimensions=8)[0]
    assert short == pytest.approx(whole[:8] / np.linalg.norm(whole[:8]), abs=1e-6)


@pytest.mark.parametrize(
    "fields",
    [{}, {"input": []}, {"input": ""}, {"input": [""]}, {"input": "a", "dimensions": 0}, {"input": [[1.5]]},
     {"input": "a", "dimensions": 193}, {"input": "a", "encoding_format": "hex"}, {"input": ["a"] * 5000}],
    ids=lambda f: str(f)[:40],
)  # fmt: skip
def test_mistakes_are_refused(client, fields):
    got = client.post(URL, json=fields)
    assert got.status_code == 400, got.text


def test_tokenize_and_back(client):
    text = "Zoë said: “naïve”\n"
    made = client.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert made["count"] == len(made["tokens"]) == len(made["token_strs"]) and made["max_model_len"] == 1024
    assert client.post("/detokenize", json={"tokens": made["tokens"]}).json() == {"prompt": text}
    assert client.post("/detokenize", json={"tokens": [1 << 20]}).status_code == 400
    assert client.post("/tokenize", json={}).status_code == 400
