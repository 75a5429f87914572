"""OpenVINO GenAI's continuous batching behind the few lines of HTTP that the load generator speaks.

    python openvino_front.py MODEL PORT THREADS KV_GIB

It has no server of its own. This one runs in its environment (bench/peers/build.py): one thread steps the
pipeline, the main one reads requests and writes what comes. Prompts are token ids. Tokens are not turned into
text, which spares this engine work that others do. Weights in bf16 or int8 as bench/peers converts them,
prefixes shared, steps of 256 tokens with prompts in pieces ("dynamic split fuse"), its default: all else as
it comes.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import threading
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai


class Engine(threading.Thread):
    """Steps while there is something to do. Requests come and go through a queue."""

    def __init__(self, model: str, threads: int, kv_gib: int) -> None:
        super().__init__(daemon=True)
        config = genai.SchedulerConfig()
        config.enable_prefix_caching = True
        config.cache_size = kv_gib
        properties = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16"}
        self._pipe = genai.ContinuousBatchingPipeline(model, config, "CPU", properties)
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._running: dict[int, Any] = {}
        self._next = 0

    def submit(self, ids: list[int], new: int, put: Any) -> int:
        """put(tokens), from this engine's thread, as they come."""
        self._next += 1
        self._asked.put((self._next, ids, new, put))
        return self._next

    def cancel(self, id_: int) -> None:
        self._asked.put((id_, None, 0, None))

    def run(self) -> None:
        while True:
            idle = not self._running
            while idle or not self._asked.empty():
                self._take(*self._asked.get())
                idle = False
            if self._pipe.has_non_finished_requests():
                self._pipe.step()
            for id_, (handle, left, put) in list(self._running.items()):
                tokens = []
                while handle.can_read():
                    tokens += [t for o in handle.read().values() for t in o.generated_ids]
                if tokens:
                    put(tokens)
                    left -= len(tokens)
                    self._running[id_] = (handle, left, put)
                if left <= 0:
                    del self._running[id_]

    def _take(self, id_: int, ids: list[int] | None, new: int, put: Any) -> None:
        if ids is None:
            if id_ in self._running:
                self._running.pop(id_)[0].cancel()
            return
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        handle = self._pipe.add_request(id_, ov.Tensor(np.array([ids], np.int64)), config)
        self._running[id_] = (handle, new, put)


async def answer(engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        if head.startswith("GET"):
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            return
        length = next(int(x[15:]) for x in head.lower().split("\r\n") if x.startswith("content-length:"))
        body = json.loads(await reader.readexactly(length))
        await stream(engine, body["prompt"], body["max_tokens"], reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client went away
    finally:
        writer.close()


async def stream(engine: Engine, ids: list[int], new: int, reader: Any, writer: Any) -> None:
    loop = asyncio.get_running_loop()
    come: asyncio.Queue[list[int]] = asyncio.Queue()
    id_ = engine.submit(ids, new, lambda tokens: loop.call_soon_threadsafe(come.put_nowait, tokens))
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    gone = asyncio.ensure_future(reader.read())  # nothing more is to come: the end of it is a client gone
    left = new
    try:
        while left > 0:
            get = asyncio.ensure_future(come.get())
            await asyncio.wait((get, gone), return_when=asyncio.FIRST_COMPLETED)
            if not get.done():
                get.cancel()
                raise ConnectionError
            left -= len(get.result())
            say(writer, {"choices": [{"index": 0, "text": "x", "token_ids": get.result()}]})
        say(writer, {"choices": [], "usage": {"completion_tokens": new - left, "prompt_tokens": len(ids)}})
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
    finally:
        gone.cancel()
        if left > 0:
            engine.cancel(id_)


def say(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")


async def main(model: str, port: int, threads: int, kv_gib: int) -> None:
    engine = Engine(model, threads, kv_gib)
    engine.start()
    server = await asyncio.start_server(lambda r, w: answer(engine, r, w), "127.0.0.1", port, limit=1 << 22)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *(int(x) for x in sys.argv[2:5])))
