"""What a server does not let happen to itself: sizes, rates, times, keys, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest
from conftest import MODEL, Running, serving

from pronghorn.compose import load
from pronghorn.seq import Request
from pronghorn.serve.errors import ApiError
from pronghorn.serve.grammars import Grammars
from pronghorn.serve.settings import Settings

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
LONG = {**ASK, "max_tokens": 900, "pronghorn": {"ignore_eos": True}}
JSON = {"content-type": "application/json"}


def post(client, data: bytes, **headers: str) -> httpx.Response:
    return client.post(CHAT, content=data, headers={**JSON, **headers})


def idle(server: Running, seconds: float = 10) -> bool:
    """Whether everything ends and its pages are free by then."""
    engine = server.engine
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not engine.busy and not server.ctx.active:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def strict(pool) -> Iterator[Running]:
    """The same models behind a server of few allowances."""
    settings = Settings(
        keys=("first", "second"), max_body=2000, header_timeout=0.3, body_timeout=0.3, timeout=0.5,
        origins=("https://page.example",), open_metrics=False,
    )  # fmt: skip
    yield from serving(pool, settings)


# ---------------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": ' + b"[" * 100_000,
        b'{"messages": ' + b"[" * 80 + b"]" * 80 + b"}",
        b'{"x": ' + b'{"a":' * 90 + b"1" + b"}" * 91,
        *(
            b'{"messages": [{"role": "user", "content": "a"}], "temperature": %s}' % x
            for x in (
                b"NaN",
                b"Infinity",
                b"1e999",
                b"-1e999",
                b"1" * 5000,
                b"-0.1",
                b'"NaN"',
                b"[]",
                b"true",
            )
        ),
        b'{"messages": [{"role": "user", "content": "a"}], "seed": 1e308}',
        b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 99999999999999999999999}',
        b'{"messages": [{"role": "user", "content": "a"}], "logit_bias": {"-1": 1}}',
        b'{"messages": [{"role": "user", "content": "a"}], "logit_bias": {"1e3": 1}}',
    ],
    ids=lambda d: d[-40:].decode("latin1"),
)
def test_bodies_that_make_no_sense(client, data):
    got = post(client, data)
    assert got.status_code == 400, got.text
    assert got.json()["error"]["type"] == "invalid_request_error"


def test_only_json_is_read(client):
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert post(client, json.dumps(ASK).encode(), **{"content-type": kind}).status_code == 415


def test_a_large_body_is_refused_before_it_is_read(client, server):
    begun = time.monotonic()
    got = post(client, b"x" * (10 << 20))
    assert got.status_code == 413 and got.json()["error"]["code"] == "body_too_large"
    assert time.monotonic() - begun < 5

    def endless() -> Iterator[bytes]:  # no content-length
        for _ in range(200):
            yield b" " * (1 << 16)

    try:
        got = client.post(CHAT, content=endless(), headers=JSON)
        assert got.status_code == 413
    except httpx.WriteError:  # the server hung up while we still wrote
        pass
    assert idle(server)


def test_errors_have_one_form_everywhere(client):
    for method, path, status in (
        ("GET", "/nothing", 404), ("GET", CHAT, 405), ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/x", 404),
    ):  # fmt: skip
        got = client.request(method, path)
        assert got.status_code == status
        assert set(got.json()["error"]) == {"message", "type", "param", "code"}


def form(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def test_hostile_schemas_hold_nobody_up(client, server):
    """Seconds of work in a schema: a 400 after the time it may take. Others stream on, and other schemas are
    read, or asked to come again."""
    large = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(8000)}}
    odd = [
        {"anyOf": [{"type": "string", "pattern": f"(a|b|ab){{1,{i + 500}}}x{{900}}"} for i in range(60)]},
        {"type": "string", "pattern": "((a{1,100}){1,100}){1,100}"},
        {"type": "array", "items": {"type": "string", "maxLength": 10**9}, "minItems": 10**9},
    ]
    with httpx.Client(base_url=server.url, timeout=60) as other:
        streamed: list[float] = []

        def read() -> None:
            with other.stream("POST", CHAT, json={**LONG, "stream": True}) as got:
                streamed.extend(time.monotonic() for line in got.iter_lines() if line)

        reader = threading.Thread(target=read)
        reader.start()
        got = client.post(CHAT, json={**ASK, "response_format": form(large)})
        if got.status_code != 200:  # a machine that reads it in time may follow it
            assert got.status_code == 400 and got.json()["error"]["code"] == "schema_too_complex", got.text
        for schema in odd:
            got = client.post(CHAT, json={**ASK, "max_tokens": 4, "response_format": form(schema)})
            assert got.status_code in (200, 400), got.text  # some can be followed
        reader.join(60)
    assert len(streamed) > 10
    assert idle(server)


def test_a_schema_that_takes_too_long():
    release = threading.Event()

    class Slow:
        """A constraint that is opened when we say so."""

        slot = "constrain"

        def open(self, tokenizer: object) -> None:
            release.wait(20)

    def prepare(request: Request) -> None:
        for method in request.use:
            method.open(None)

    grammars, engine = Grammars(0.1), SimpleNamespace(tokenizer=None, prepare=prepare)
    found = []
    try:
        for _ in range(3):
            with pytest.raises(ApiError) as refused:
                asyncio.run(grammars.opened(engine, Request((1,), use=(Slow(),))))
            found.append(refused.value.status)
    finally:
        release.set()
    assert found == [400, 400, 429]  # both threads are taken by then


def test_a_schema_is_opened_once(client, monkeypatch):
    method, opened = load("constrain", "regex"), 0
    plain = method.open

    def counted(self, tokenizer):
        nonlocal opened
        opened += 1
        return plain(self, tokenizer)

    monkeypatch.setattr(method, "open", counted)
    for n in (1, 2):  # the second one is known to be fine
        got = client.post(CHAT, json={**ASK, "n": 3, "pronghorn": {"regex": "(opened|once)"}})
        assert got.json()["choices"][2]["message"]["content"] in ("opened", "once")
        assert opened == n


# ---------------------------------------------------------------------- clients that leave


def test_leaving_frees_everything_at_once(server):
    for stream in (True, False):
        raw = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        data = json.dumps({**LONG, "stream": stream, "n": 4}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        raw.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        engine = server.engine
        until = time.monotonic() + 10
        while not engine.running and time.monotonic() < until:
            time.sleep(0.001)
        assert engine.running
        raw.close()
        assert idle(server)


def test_many_leave_at_random(server):
    def ask(i: int) -> None:
        with (
            httpx.Client(base_url=server.url, timeout=60) as own,
            own.stream(
                "POST", CHAT, json={**LONG, "max_tokens": 60, "stream": True, "seed": i, "temperature": 1}
            ) as got,
        ):
            for n, _ in enumerate(got.iter_lines()):
                if i % 2 and n > i:
                    return

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(24)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert idle(server)


def test_a_full_queue(client, server, monkeypatch):
    monkeypatch.setattr(server.pool._models()[MODEL], "max_waiting", 0)
    for stream in (True, False):
        got = client.post(CHAT, json={**ASK, "stream": stream})
        assert got.status_code == 429 and got.headers["retry-after"] == "1"
        assert got.json()["error"]["type"] == "rate_limit_error"


# ---------------------------------------------------------------------- times


def test_an_answer_that_takes_too_long(strict):
    with httpx.Client(base_url=strict.url, headers={"x-api-key": "first"}, timeout=30) as client:
        slow = {**LONG, "n": 48, "temperature": 1}
        got = client.post(CHAT, json=slow)
        assert got.status_code == 504 and got.headers["x-should-retry"] == "false"
        with client.stream("POST", CHAT, json={**slow, "stream": True}) as streamed:
            events = [line for line in streamed.iter_lines() if line]
        assert json.loads(events[-1][6:])["error"]["code"] == "timeout"
    assert idle(strict)


def test_slow_requests_are_hung_up_on(strict):
    port = int(strict.url.rsplit(":", 1)[1])
    for sent in (b"", b"POST /v1/chat", b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: "):
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.settimeout(10)
            raw.sendall(sent)
            with contextlib.suppress(ConnectionResetError):
                assert raw.recv(100) == b""
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.settimeout(10)
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: first\r\n"
            b"content-type: application/json\r\ncontent-length: 50\r\n\r\n{"
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 408")


# ---------------------------------------------------------------------- who asks


def test_keys(strict):
    with httpx.Client(base_url=strict.url) as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer third"}, {"x-api-key": ""}, {"authorization": "first"}):
            got = client.get("/v1/models", headers=headers)
            assert got.status_code == 401 and got.json()["error"]["type"] == "authentication_error"
        assert client.get("/metrics").status_code == 401
        for headers in ({"authorization": "Bearer second"}, {"x-api-key": "first"}):
            assert client.get("/v1/models", headers=headers).status_code == 200
            assert client.get("/metrics", headers=headers).status_code == 200
        assert client.get("/v1/models", headers={"x-api-key": "kéy".encode()}).status_code == 401


def test_origins(strict, client):
    asked = {"origin": "https://page.example", "access-control-request-method": "POST"}
    with httpx.Client(base_url=strict.url) as own:
        got = own.options(CHAT, headers=asked)
        assert got.status_code == 200 and got.headers["access-control-allow-origin"] == asked["origin"]
        other = own.options(CHAT, headers={**asked, "origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers
        refused = own.get("/v1/models", headers={"origin": asked["origin"]})  # pages can read why, too
        assert (
            refused.status_code == 401 and refused.headers["access-control-allow-origin"] == asked["origin"]
        )
    assert "access-control-allow-origin" not in client.get("/health", headers=asked).headers


def test_a_body_limit_of_ones_own(strict):
    with httpx.Client(base_url=strict.url, headers={"x-api-key": "first"}) as client:
        assert client.post(CHAT, json={**ASK, "user": "u" * 3000}).status_code == 413


def test_request_ids(client):
    assert client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for bad in ("x" * 129, "a\tb", ""):
        made = client.get("/health", headers={"x-request-id": bad}).headers["x-request-id"]
        assert made.startswith("req_")


# ---------------------------------------------------------------------- what an operator sees


def test_metrics_count(client):
    client.post(CHAT, json={**ASK, "max_tokens": 2})
    client.post(CHAT, json={})
    text = client.get("/metrics").text
    for name in (
        'pronghorn_requests_total{endpoint="/v1/chat/completions",status="200"}',
        'pronghorn_requests_total{endpoint="/v1/chat/completions",status="400"}',
        'pronghorn_request_seconds_bucket{endpoint="/v1/chat/completions"',
    ):
        assert name in text
    client.get("/random-path")
    assert "random-path" not in client.get("/metrics").text  # strangers cannot grow it


def test_state(client):
    state = client.get("/pronghorn/state").json()
    assert state["model"] == MODEL and state["kv"]["limit"] > 0
    assert client.get("/pronghorn/state", params={"model": "no"}).status_code == 404


def test_methods_that_a_request_may_bring(client):
    found = {m["name"]: m for m in client.get("/pronghorn/methods").json()["methods"]}
    assert "vtc" not in found and "prefix" not in found and "int8" not in found
    assert found["top-k"]["several"] and found["top-k"]["options"][0]["name"] == "k"
    for name, m in found.items():
        if name != "json" and all(not o["required"] for o in m["options"]):
            got = client.post(
                CHAT, json={**ASK, "max_tokens": 2, "pronghorn": {"use": [f"{m['slot']}.{name}"]}}
            )
            assert got.status_code == 200, (name, got.text)


def test_a_request_reads_no_file(client):
    got = client.post(CHAT, json={**ASK, "pronghorn": {"use": ["regex:pattern=@/etc/hostname"]}})
    assert got.json()["choices"][0]["message"]["content"] == "@/etc/hostname"  # a pattern like any other


def test_draining(pool):
    """Running answers are finished, new requests refused, and then the server ends."""
    generator = serving(pool, Settings())
    running = next(generator)
    with (
        httpx.Client(base_url=running.url, timeout=60) as client,
        client.stream("POST", CHAT, json={**LONG, "n": 8, "stream": True}) as got,
    ):
        lines = got.iter_lines()
        next(lines)
        running.server.handle_exit(15, None)
        with httpx.Client(base_url=running.url, timeout=10) as other:
            health = other.get("/health")
            refused = other.post(CHAT, json=ASK)
        rest = [x for x in lines if x]
        assert rest[-1] == "data: [DONE]"
    assert health.status_code == 503 and refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining" and "retry-after" in refused.headers
    for _ in generator:
        pass
