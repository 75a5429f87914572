"""The server over PyTorch, on the CPU and on a GPU where there is one: the service of the native engine.

Products over other numbers of rows add up in another order there, so an answer may part from itself where two
tokens are all but equally likely. Such places are counted and told; anywhere else a difference is an error.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
from conftest import MODEL, Running, serving

from pronghorn.cli.serve import TBT, specs
from pronghorn.serve.pool import Pool
from pronghorn.serve.settings import Settings

torch = pytest.importorskip("torch", reason="PyTorch is not installed here (pip install pronghorn[gpu])")

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
ASK = [{"role": "user", "content": "The secret number of Anna is 4821. What is the secret number of Anna?"}]
STORY = "Once upon a time there was a little fox who lived at the edge of a great wood. "
PROMPTS = [
    STORY, STORY * 2 + "One day", "def add(a, b):\n    return", "x", STORY * 2 + "Her mother said",
    "Repeat exactly:\nThe quick brown fox counts 4821 boats.",
]  # fmt: skip
NEAR = 1e-3  # natural-log probabilities as close as that are a near-tie; rounding moves them by some 1e-5


@pytest.fixture(scope="module", params=["torch", "cuda"])
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    """What `pronghorn serve --backend ...` serves."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device here")
    spec = specs({MODEL: MODEL}, [], False, TBT, "")[MODEL]
    pool = Pool({MODEL: replace(spec, backend=request.param, kv_bytes=64 << 20)})
    pool.load(MODEL)
    engine = pool._models()[MODEL].llm.engine
    yield from serving(pool, Settings())
    asyncio.run(pool.close())
    assert engine.store.held == 0


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as made:
        yield made


def answer(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    got = client.post(path, json={"temperature": 0, **body})
    assert got.status_code == 200, got.text
    return got.json()


def streamed(url: str, **body: Any) -> tuple[str, str]:
    """Text and finish of a chat, by a client of its own."""
    text, finish = "", ""
    with (
        httpx.Client(base_url=url, timeout=120) as own,
        own.stream("POST", CHAT, json={"messages": ASK, "stream": True, **body}) as got,
    ):
        assert got.status_code == 200
        for line in got.iter_lines():
            if line.startswith("data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                text += choice["delta"].get("content") or ""
                finish = choice["finish_reason"] or finish
    return text, finish


def settled(server: Running) -> None:
    """Wait until nothing runs."""
    until = time.monotonic() + 20
    while server.engine.busy or server.ctx.active:
        assert time.monotonic() < until, "a request is stuck"
        time.sleep(0.02)


def test_several_clients_stream_at_once(server: Running):
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(streamed, server.url, temperature=0) for _ in range(4)]
        jobs += [pool.submit(streamed, server.url, seed=s, max_tokens=24) for s in range(2)]
        got = [job.result() for job in jobs]
    assert got[:4] == [("4821", "stop")] * 4
    assert all(text and finish in ("stop", "length") for text, finish in got[4:])


def test_structured_output(client: httpx.Client):
    schema = {
        "type": "object", "required": ["n", "ok"], "additionalProperties": False,
        "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}, "ok": {"type": "boolean"}},
    }  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "out", "schema": schema, "strict": True}}
    for seed in range(2):
        made = answer(client, CHAT, messages=ASK, response_format=form, seed=seed, temperature=1)
        got = json.loads(made["choices"][0]["message"]["content"])
        assert list(got) == ["n", "ok"] and 1 <= got["n"] <= 9 and got["ok"] in (True, False)


def test_prefixes_are_shared(client: httpx.Client):
    before = "This is what every request of this test begins with, and no other one. " * 6
    first, second = (
        answer(client, PLAIN, prompt=before + end, max_tokens=4)["usage"] for end in ("Red", "Blue")
    )
    assert first["prompt_tokens_details"]["cached_tokens"] < 8
    assert second["prompt_tokens_details"]["cached_tokens"] > second["prompt_tokens"] // 2
    assert client.get("/pronghorn/state").json()["cache"]["nodes"]


def cancelled(client: httpx.Client) -> int:
    found = re.search(
        r'^pronghorn_finished_total{.*how="cancelled".*} (\S+)$', client.get("/metrics").text, re.M
    )
    assert found
    return int(float(found[1]))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves(server: Running, client: httpx.Client, stream: bool):
    before = cancelled(client)
    body = {"messages": ASK, "max_tokens": 800, "n": 2, "stream": stream, "pronghorn": {"ignore_eos": True}}
    with httpx.Client(base_url=server.url, timeout=120 if stream else 0.5) as own:
        if stream:
            with own.stream("POST", CHAT, json=body) as got:
                next(got.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                own.post(CHAT, json=body)
    settled(server)
    assert cancelled(client) == before + 1
    assert answer(client, CHAT, messages=ASK)["choices"][0]["message"]["content"] == "4821"


def parted(alone: dict[str, Any], again: dict[str, Any]) -> tuple[int, int]:
    """Near-ties of an answer up to where another one parts from it, and whether it does."""
    near = 0
    tokens = zip(alone["tokens"], again["tokens"], strict=True)
    for i, (one, other) in enumerate(tokens):
        best, second = sorted(alone["top_logprobs"][i].values())[:-3:-1]
        near += best - second < NEAR
        if one != other:
            assert best - second < NEAR, f"token {i} is {other!r}, alone it is {one!r}, and no near-tie"
            return near, 1
        assert abs(alone["token_logprobs"][i] - again["token_logprobs"][i]) < NEAR
    return near, 0


def test_company_changes_no_token_but_at_near_ties(server: Running, client: httpx.Client):
    asked = {"max_tokens": 32, "logprobs": 2, "pronghorn": {"ignore_eos": True}}

    def one(prompt: str) -> dict[str, Any]:
        return answer(client, PLAIN, prompt=prompt, **asked)["choices"][0]["logprobs"]

    def crowd(i: int) -> None:
        streamed(server.url, seed=i, max_tokens=8 + 6 * i, pronghorn={"ignore_eos": True})

    alone = [one(p) for p in PROMPTS]
    others = [threading.Thread(target=crowd, args=(i,)) for i in range(6)]
    for thread in others:
        thread.start()
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        beside: Sequence[dict[str, Any]] = list(pool.map(one, PROMPTS))
    for thread in others:
        thread.join()
    counts = [parted(a, b) for a, b in zip(alone, beside, strict=True)]
    near, turned = (sum(c) for c in zip(*counts, strict=True))
    print(f"{sum(len(a['tokens']) for a in alone)} tokens, {near} near-ties, {turned} turned")
    if turned:
        warnings.warn(f"{turned} of {near} near-ties turned in company", stacklevel=1)


def test_only_near_ties_may_turn():
    def answer(*tokens: tuple[str, float, float]) -> dict[str, Any]:
        return {
            "tokens": [t for t, _, _ in tokens],
            "token_logprobs": [best for _, best, _ in tokens],
            "top_logprobs": [{t: best, "else": second} for t, best, second in tokens],
        }

    alone = answer(("a", -0.1, -3.0), ("b", -0.7, -0.7001), ("c", -0.2, -2.0))
    assert parted(alone, alone) == (1, 0)
    assert parted(alone, answer(("a", -0.1, -3.0), ("x", -0.7, -0.7001), ("y", -0.2, -2.0))) == (1, 1)
    with pytest.raises(AssertionError, match="no near-tie"):
        parted(alone, answer(("x", -0.1, -3.0), ("b", -0.7, -0.7001), ("c", -0.2, -2.0)))
    with pytest.raises(AssertionError):
        parted(alone, answer(("a", -0.15, -3.0), ("b", -0.7, -0.7001), ("c", -0.2, -2.0)))
