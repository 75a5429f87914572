"""A file of requests: what it may say, what is written, and going on after any end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pronghorn import LLM
from pronghorn.errors import RequestError
from pronghorn.serve import batch
from pronghorn.serve.batch import Job, Tally, answered, in_order, read_jobs

CHAT = "/v1/chat/completions"


def line(name: str, url: str = CHAT, **body: Any) -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body})


def written(folder: Path, *lines: str) -> Path:
    path = folder / "in.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


# ------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ([], "no lines"),
        (["{"], "line 1 is not JSON"),
        (["[1]"], "not an object"),
        ([line("a"), "", line("a")], "line 3: custom_id 'a' is there twice"),
        (['{"url": "/v1/completions"}'], "custom_id"),
        ([line("a", "/v1/files")], "POST to one of"),
        ([line("a", stream=True)], "stream"),
        (['{"custom_id": "a", "url": "/v1/completions", "body": 3}'], "no body"),
        (["[" * 100_000], "not JSON"),
    ],
)
def test_lines_that_are_no_requests_are_named(lines: list[str], word: str, tmp_path: Path):
    with pytest.raises(RequestError, match=word.replace("(", r"\(")):
        read_jobs(written(tmp_path, *lines))


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(RequestError, match="cannot read"):
        read_jobs(tmp_path / "absent")


def test_a_torn_last_line_is_taken_off(tmp_path: Path):
    out = tmp_path / "out.jsonl"
    assert answered(out) == set()
    good = '{"custom_id": "a"}\n{"custom_id": "b"}\n'
    for torn in ('{"custom_id": "c"', '{"custom_id": "c"}', '{"cust', ""):
        out.write_text(good + torn)
        assert answered(out) == {"a", "b"}
        assert out.read_text() == good
    out.write_text("a letter to somebody\n")
    with pytest.raises(RequestError, match="another output"):
        answered(out)
    assert out.read_text() == "a letter to somebody\n"


def test_what_begins_alike_stands_side_by_side():
    jobs = [Job(str(i), CHAT, {"messages": [{"content": f"{'ab'[i % 2]} {i}"}]}) for i in range(10)]
    order = [job.custom_id for job in in_order(jobs)]
    assert sorted(order) == sorted(str(i) for i in range(10))
    assert {int(i) % 2 for i in order[:5]} == {0}


# ------------------------------------------------------------------------------- running


class Answers:
    """An application that answers each body with itself; bodies that say so fail the first time."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.at_once = self.most = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"])
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        again = body in self.asked
        self.asked.append(body)
        status = 503 if body.get("fails") and not again else 400 if body.get("bad") else 200
        data = {"id": "x", "usage": {"prompt_tokens": 3, "completion_tokens": 2}} if status == 200 else {
            "error": {"message": "no"}
        }  # fmt: skip
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(data).encode()})


def run(app: Any, jobs: list[Job], out: Path, window: int = 4) -> Tally:
    return asyncio.run(batch.run(app, jobs, out, "m", window, lambda tally: None))


def test_failures_of_the_server_are_tried_again_by_the_next_run(tmp_path: Path):
    out, app = tmp_path / "out.jsonl", Answers()
    jobs = [Job(str(i), CHAT, {"fails": i == 3, "bad": i == 5, "i": i}) for i in range(9)]
    tally = run(app, jobs, out)
    assert (tally.done, tally.refused, len(tally.failed)) == (8, 1, 1)
    assert tally.failed[0].startswith("3: 503")
    assert app.most == 4
    assert all(body["model"] == "m" for body in app.asked)
    assert answered(out) == {str(i) for i in range(9)} - {"3"}
    again = run(app, [j for j in jobs if j.custom_id not in answered(out)], out)
    assert (again.done, again.new_tokens) == (1, 2)
    assert answered(out) == {str(i) for i in range(9)}


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out.jsonl"
    write, left = os.write, [3]

    def full(fd: int, data: bytes) -> int:
        left[0] -= 1
        return write(fd, data if left[0] >= 0 else data[:20])

    monkeypatch.setattr(batch.os, "write", full)
    with pytest.raises(RequestError, match="the disk is full"):
        run(Answers(), [Job(str(i), CHAT, {"i": i}) for i in range(50)], out, window=2)
    monkeypatch.undo()
    lines = out.read_text().splitlines()
    assert len(lines) == 3
    assert all(json.loads(x)["response"]["status_code"] == 200 for x in lines)


def test_killed_and_started_again(tmp_path: Path):
    """After kill -9 nothing is answered twice and nothing is missing; answers are those of the engine."""
    asks = [f"Registry:\namber: {i}\nlantern: 9{i}\nWhat is the value of lantern?" for i in range(150)]
    body = {"max_tokens": 12, "temperature": 0}
    path = written(
        tmp_path,
        *(line(str(i), messages=[{"role": "user", "content": t}], **body) for i, t in enumerate(asks)),
    )
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "pronghorn.cli.main", "batch", str(path), str(out), "--window", "4"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not (out.exists() and out.read_bytes().count(b"\n") > 5) and time.monotonic() < until:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = answered(out)
    assert 5 < len(before) < 150
    second = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=120)
    told = json.loads(second.stdout)
    assert told["answered"] == 150 - len(before)
    assert told["cached_tokens"] > 0
    found = [json.loads(x) for x in out.read_text().splitlines()]
    assert sorted(int(x["custom_id"]) for x in found) == list(range(150))
    texts = {x["custom_id"]: x["response"]["body"]["choices"][0]["message"]["content"] for x in found}
    llm = LLM()
    for i in (0, 7, 149):
        assert texts[str(i)] == llm.chat([{"role": "user", "content": asks[i]}], max_tokens=12).text
