"""`pronghorn serve` as people start it and stop it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

CHAT = "/v1/chat/completions"
LONG = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 900, "n": 8, "stream": True,
        "pronghorn": {"ignore_eos": True}}  # fmt: skip


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "pronghorn.cli.main", "serve", *args]


@contextmanager
def started(*args: str, env: dict[str, str] | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and where it listens."""
    process = subprocess.Popen(
        command("--port", "0", *args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://[\w.]+:\d+", line)
        assert found, line + (process.stderr.read() if process.stderr and process.poll() is not None else "")
        yield process, found.group()
    finally:
        process.kill()
        process.communicate()


def test_it_serves_and_finishes_what_runs_when_asked_to_stop():
    with started("--json", "a=pronghorn-tiny", "b=pronghorn-tiny-draft", "--memory-gb", "4") as (
        process,
        url,
    ):
        with httpx.Client(base_url=url, timeout=60) as client:
            assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["a", "b"]
            for model in ("a", "b"):
                got = client.post(
                    CHAT, json={**LONG, "stream": False, "n": 1, "max_tokens": 3, "model": model}
                )
                assert got.status_code == 200, got.text
            with client.stream("POST", CHAT, json={**LONG, "n": 1, "max_tokens": 200}) as got:
                lines = got.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                assert [x for x in lines if x][-1] == "data: [DONE]"
        assert process.wait(20) == 0
        assert process.stderr is not None
        logged = [json.loads(line) for line in process.stderr.read().splitlines() if line.startswith("{")]
        assert any(x["message"] == f"POST {CHAT} 200" and x["seconds"] > 0 for x in logged)


def test_a_second_signal_stops_at_once():
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
    with started("--drain", "60") as (process, url):
        port = int(url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(head.encode())  # a request that does not come to its end
            httpx.get(url + "/health")
            process.send_signal(signal.SIGINT)
            while httpx.get(url + "/health").status_code != 503:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0  # its body may take 30 seconds


def test_keys_come_from_the_environment_too():
    with started(env={"PRONGHORN_API_KEY": "one, two"}) as (_, url):
        assert httpx.get(url + "/v1/models").status_code == 401
        assert httpx.get(url + "/v1/models", headers={"authorization": "Bearer two"}).status_code == 200


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["no-such-model"], "no-such-model"),
        (["pronghorn-tiny", "pronghorn-tiny"], "two models are called"),
        (["=x"], "NAME=MODEL"),
        (["--use", "no-such-method"], "no method called"),
        (["--host", "256.1.1.1"], "cannot listen"),
        (["--plain", "--disk-cache", "x"], "--plain"),
        (["--tbt", "20", "--use", "fcfs"], "sarathi:tbt"),
        (["--disk-cache", "/tmp", "--use", "prefix:gb=1"], "prefix:disk"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else "",
)
def test_mistakes_are_told_in_one_line(args, told):
    done = subprocess.run(command("--port", "0", *args), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and told in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as held:
        done = subprocess.run(
            command("--port", str(held.getsockname()[1])), capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2 and "choose another --port" in done.stderr
