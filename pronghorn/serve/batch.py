"""A file of requests, answered in the order that costs least: the OpenAI batch format, offline.

Each line of the input is {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body": {...}}; each
line of the output {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}. Lines go
through the same endpoints as over HTTP, without a network between. An answer is written when it is there, as
a whole line; whoever starts again goes on with what is missing.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pronghorn.errors import RequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
LINE = 16 << 20  # bytes of a line, at most
AGAIN = 500  # answers from this status on are not kept: another run tries again


@dataclass(frozen=True)
class Job:
    """One line of the input."""

    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass
class Tally:
    """What became of a file. Tokens are those that the answers count."""

    done: int = 0  # answered, refusals included
    refused: int = 0  # of these, with a 4xx
    failed: list[str] = field(default_factory=list)  # custom_id: why; not written
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0


def read_jobs(path: Path) -> list[Job]:
    """The lines of a file. Raises `RequestError` naming the line that is none."""
    jobs: list[Job] = []
    seen: set[str] = set()
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where} is not JSON: {error}") from None
        job = _job(data, where)
        if job.custom_id in seen:
            raise RequestError(f"{where}: custom_id {job.custom_id!r} is there twice")
        seen.add(job.custom_id)
        jobs.append(job)
    if not jobs:
        raise RequestError(f"{path} has no lines: give one request a line")
    return jobs


def _job(data: Any, where: str) -> Job:
    if not isinstance(data, dict):
        raise RequestError(f"{where} is not an object")
    name, url, body = data.get("custom_id"), data.get("url"), data.get("body")
    if not isinstance(name, str) or not name:
        raise RequestError(f'{where} has no custom_id: give each line one, as in "custom_id": "request-1"')
    if data.get("method", "POST") != "POST" or url not in URLS:
        raise RequestError(f"{where} asks {data.get('method')} {url}: POST to one of {', '.join(URLS)}")
    if not isinstance(body, dict):
        raise RequestError(f"{where} has no body")
    if body.get("stream"):
        raise RequestError(f"{where} asks for a stream, which a file cannot be: leave it out")
    return Job(name, url, body)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE + 1):
                number += 1
                if len(line) > LINE:
                    raise RequestError(f"{path}, line {number} is longer than {LINE >> 20} MiB")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from None


def answered(path: Path) -> set[str]:
    """custom_ids of the whole lines of an output; a last line that was cut short is taken off the file."""
    if not path.exists():
        return set()
    done: set[str] = set()
    whole = 0
    with path.open("rb") as file:
        for line in file:
            try:
                done.add(json.loads(line)["custom_id"])
            except (ValueError, KeyError, TypeError, RecursionError):
                if line.endswith(b"\n"):
                    raise RequestError(
                        f"{path} has lines that are no answers of a batch: name another output"
                    ) from None
                break
            if not line.endswith(b"\n"):
                done.discard(json.loads(line)["custom_id"])
                break
            whole += len(line)
    if whole < path.stat().st_size:
        os.truncate(path, whole)
    return done


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Jobs with those side by side that begin alike, so that a window of them shares what it can. Within it
    the scheduler decides."""
    return sorted(jobs, key=lambda job: (job.url, _text(job.body)))


def _text(body: dict[str, Any]) -> str:
    told = body.get("messages") or body.get("prompt") or body.get("input") or ""
    return told if isinstance(told, str) else json.dumps([body.get("tools"), told])


async def run(
    app: ASGIApp, jobs: Sequence[Job], output: Path, model: str, window: int, tick: Callable[[Tally], None]
) -> Tally:
    """Answer jobs, `window` of them at once, and write what comes. Every body is sent to `model`. Raises
    `RequestError` when the output cannot be written; what was written before stays whole."""
    tally = Tally()
    room = asyncio.Semaphore(window)
    try:
        file = output.open("ab", buffering=0)
    except OSError as error:
        raise RequestError(f"cannot write {output}: {error.strerror or error}") from None

    async def one(job: Job) -> None:
        try:
            status, body = await ask(app, job.url, {**job.body, "model": model})
        finally:
            room.release()
        if status >= AGAIN or status == 429:
            tally.failed.append(f"{job.custom_id}: {status} {_reason(body)}")
        else:
            _write(file.fileno(), output, _answer(job, status, body))
            tally.done += 1
            tally.refused += status >= 400
            _count(tally, body)
        tick(tally)

    tasks: set[asyncio.Task[None]] = set()
    try:
        for job in in_order(jobs):
            await room.acquire()
            tasks.add(asyncio.ensure_future(one(job)))
            ended = {t for t in tasks if t.done()}
            await asyncio.gather(*ended)  # the first that could not be written ends it
            tasks -= ended
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    finally:
        os.fsync(file.fileno())
        file.close()
    return tally


def _write(fd: int, output: Path, answer: dict[str, Any]) -> None:
    """A whole line or nothing of it."""
    data = json.dumps(answer, ensure_ascii=False).encode() + b"\n"
    size = os.fstat(fd).st_size
    try:
        if os.write(fd, data) == len(data):
            return
        reason = "the disk is full"
    except OSError as error:
        reason = error.strerror or str(error)
    os.ftruncate(fd, size)
    raise RequestError(
        f"cannot write {output}: {reason}. What is there stays; make room and start again to go on"
    )


def _answer(job: Job, status: int, body: Any) -> dict[str, Any]:
    id_ = body.get("id", "") if isinstance(body, dict) else ""
    return {
        "id": f"batch_req_{secrets.token_hex(12)}",
        "custom_id": job.custom_id,
        "response": {"status_code": status, "request_id": id_, "body": body},
        "error": None,
    }


def _reason(body: Any) -> str:
    error = body.get("error", {}) if isinstance(body, dict) else {}
    return str(error.get("message", "")) if isinstance(error, dict) else ""


def _count(tally: Tally, body: Any) -> None:
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return
    prompt = int(usage.get("prompt_tokens") or usage.get("input_tokens") or 0)
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    tally.prompt_tokens += prompt
    tally.cached_tokens += int(details.get("cached_tokens") or 0)
    tally.new_tokens += int(usage.get("completion_tokens") or usage.get("output_tokens") or 0)


async def ask(app: ASGIApp, url: str, body: dict[str, Any]) -> tuple[int, Any]:
    """One request to an application in this process: status and body."""
    data = json.dumps(body).encode()
    given: list[Message] = [{"type": "http.request", "body": data, "more_body": False}]
    status, parts = 500, []
    never = asyncio.Event()

    async def receive() -> Message:
        if given:
            return given.pop()
        await never.wait()  # nobody leaves
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": url, "raw_path": url.encode(), "query_string": b"", "root_path": "", "headers": headers,
        "client": None, "server": None, "state": {},
    }  # fmt: skip
    await app(scope, receive, send)
    text = b"".join(parts)
    try:
        return status, json.loads(text)
    except ValueError:
        return status, {"error": {"message": text.decode("utf-8", "replace")[:1000]}}
