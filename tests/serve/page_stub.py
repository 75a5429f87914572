"""A server without a model, for the page's tests: it answers what a test put there, as the real one would."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from pronghorn.serve.page import router

ORIGINS = ("model", "drafted", "drafted", "drafted", "forced")

RECEIPT: dict[str, Any] = {
    "id": "req-1", "model": "pronghorn-tiny", "created": 1.8e9, "n": 1, "finish": "stop",
    "queue_seconds": 0.001, "first_token_seconds": 0.021, "seconds": 0.421,
    "prompt_tokens": 12, "new_tokens": 42, "steps": 21, "accepted_length": 2.0,
    "drafters": {"prompt-lookup": {"drafted": 50, "accepted": 21}}, "draft_rows": 50, "forced_tokens": 3,
    "reused_tokens": 8, "prompt_rows": 4, "recomputed_rows": 0, "preempted": 0, "swapped": 0,
    "branches": [{"new_tokens": 42, "finish": "stop", "error": "", "kv_bytes": 81920, "kv_full": 163840}],
    "methods": ["match", "prompt-lookup", "prefix"], "guarantee": "exact",
}  # fmt: skip


def method(slot: str, name: str, guarantee: str, about: str, several: bool, *options: Any) -> dict[str, Any]:
    """options: (name, kind, default, required, about)."""
    keys = ("name", "kind", "default", "required", "about")
    return {
        "slot": slot, "name": name, "guarantee": guarantee, "about": about, "text": about, "several": several,
        "options": [dict(zip(keys, option, strict=True)) for option in options],
    }  # fmt: skip


METHODS = [
    method("draft", "prompt-lookup", "exact", "Prompt lookup (Saxena, 2023).", False,
           ("max_ngram", "int", "3", False, ""), ("length", "int", "10", False, "drafted tokens")),
    method("draft", "token-recycling", "exact", "Token Recycling (Luo et al., 2024).", False),
    method("kv", "snapkv", "approximate", "The prompt's rows are thinned once, before the answer.", False,
           ("budget", "int", "1024", False, "rows that each head keeps of the prompt")),
    method("constrain", "regex", "exact", "Text that matches a regular expression as a whole.", False,
           ("pattern", "str", "", True, "")),
    method("shape", "min-p", "exact", "Min-p sampling.", True, ("p", "float", "0.05", False, "")),
    method("shape", "top-k", "exact", "Top-k sampling.", True, ("k", "int", "50", False, "")),
]  # fmt: skip


def running(name: str, user: str, phase: str, priority: int, age: float, **rows: int) -> dict[str, Any]:
    return {"id": name, "user": user, "phase": phase, "priority": priority, "age": age, **rows}


def node(
    number: int, parent: int, rows: int, size: int, hits: int, users: int, on_disk: bool
) -> dict[str, Any]:
    return {
        "id": number, "parent": parent, "tokens": [5, 6, 7], "rows": rows, "bytes": size, "hits": hits,
        "users": users, "last_used": 1.0, "on_disk": on_disk,
    }  # fmt: skip


def state() -> dict[str, Any]:
    """What a busy server tells of itself."""
    now = time.time()
    wave = [(i * 37) % 60 for i in range(120)]
    return {
        "model": "pronghorn-tiny",
        "methods": ["match", "fcfs", "prefix", "prompt-lookup"],
        "guarantee": "exact",
        "uptime": 4210.5,
        "kv": {"held": 52428800, "limit": 2147483648, "reserved": 0, "shared_saved": 9437184},
        "running": [
            running(
                "chat-7f3a",
                "ada",
                "answer",
                0,
                3.2,
                prompt=2048,
                done=2048,
                reused=2000,
                new=120,
                max_new=256,
            ),
            running(
                "chat-81bc", "grace", "prompt", 5, 0.8, prompt=4000, done=1500, reused=512, new=0, max_new=512
            ),
            running("cmpl-19d0", "", "answer", 0, 0.2, prompt=34, done=34, reused=0, new=9, max_new=64),
        ],
        "waiting": [{"id": "chatcmpl-9e11", "prompt": 900, "user": "<b>linus</b>", "age": 1.4}],
        "cache": {
            "nodes": [
                node(1, 0, 2000, 40960000, 31, 2, False),
                node(2, 1, 48, 983040, 1, 1, False),
                node(3, 1, 120, 2457600, 0, 0, True),
                node(4, 0, 512, 10485760, 4, 0, True),
            ]
        },
        "rates": {"tokens": 412.5, "prompt_tokens": 1830.0, "steps": 96.0},
        "step": {"rows": 258, "sequences": 3, "ms": 9.4},
        "totals": {},
        "history": [
            {
                "t": now - 119 + i,
                "tokens": 300 + 2 * w,
                "prompt_tokens": 40 * w,
                "running": w % 5,
                "kv": 2e5 * w,
            }
            for i, w in enumerate(wave)
        ],
    }


@dataclass
class Stub:
    """What the next answers are, and what was asked."""

    text: str = "One **bold** word."
    pause: float = 0.0  # seconds between tokens
    stop_after: int = -1  # tokens, then the connection breaks
    error: str = ""  # told in the stream after the first token
    status: int = 200
    key: str = ""
    state: dict[str, Any] = field(default_factory=state)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    asked: dict[str, Any] = field(default_factory=dict)  # of which prompt the tokens were wanted
    sent: int = 0  # tokens of the last answer
    cut: threading.Event = field(default_factory=threading.Event)  # a client went away
    address: str = ""

    def tokens(self) -> list[dict[str, Any]]:
        parts = re.findall(r"\s?\w+|\s|[^\w\s]", self.text)
        return [{"id": 100 + i, "text": t, "origin": ORIGINS[i % len(ORIGINS)]} for i, t in enumerate(parts)]

    def app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(router())

        @app.middleware("http")
        async def check(request: Request, call: Any) -> Response:
            api = request.url.path.startswith(("/v1", "/pronghorn"))
            if api and self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return JSONResponse({"error": {"message": "wrong key"}}, 401)
            answer: Response = await call(request)
            return answer

        @app.get("/v1/models")
        def models() -> Any:
            return {"object": "list", "data": [{"id": "pronghorn-tiny"}, {"id": "org/other model"}]}

        @app.get("/pronghorn/methods")
        def methods() -> Any:
            return {"methods": METHODS}

        @app.get("/pronghorn/state")
        def get_state() -> Any:
            return self.state

        @app.post("/tokenize")
        async def tokenize(request: Request) -> Any:
            self.asked = await request.json()
            return {"tokens": list(range(10, 22)), "count": 12, "token_strs": [f" p{i}" for i in range(12)]}

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            self.bodies.append(await request.json())
            if self.status != 200:
                error = {"message": "The queue is full." if self.status == 503 else "Not like this."}
                return JSONResponse({"error": error}, self.status, {"Retry-After": "3"})
            return StreamingResponse(self._stream(), media_type="text/event-stream")

        return app

    async def _stream(self) -> AsyncIterator[str]:
        def event(delta: dict[str, str], ours: dict[str, Any], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return f"data: {json.dumps({'id': 'chatcmpl-1', 'choices': [choice], 'pronghorn': ours})}\n\n"

        self.sent = 0
        try:
            yield event({"role": "assistant", "content": ""}, {})
            for token in self.tokens():
                if self.sent == self.stop_after:
                    return
                yield event({"content": token["text"]}, {"tokens": [token]})
                self.sent += 1
                if self.error:
                    yield f"data: {json.dumps({'error': {'message': self.error}})}\n\n"
                    return
                await asyncio.sleep(self.pause)
            yield event({}, {}, "stop")
            yield f"data: {json.dumps({'choices': [], 'pronghorn': {'receipt': RECEIPT}})}\n\n"
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.cut.set()
            raise


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """The stub on a free port of this machine, in a thread."""
    server = uvicorn.Server(
        uvicorn.Config(stub.app(), port=0, log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    stub.address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    try:
        yield stub
    finally:
        server.should_exit = True
        thread.join()
