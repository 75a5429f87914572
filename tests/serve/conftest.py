"""One server for all tests of this folder, on a port of its own, with the bundled model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from pronghorn.serve.app import create_app
from pronghorn.serve.bind import bind
from pronghorn.serve.pool import Pool, Spec
from pronghorn.serve.server import Server
from pronghorn.serve.settings import Settings

MODEL = "pronghorn-tiny"


@dataclass
class Running:
    """A server in a thread."""

    url: str
    server: Server
    pool: Pool

    @property
    def ctx(self) -> Any:
        return self.server.ctx

    @property
    def engine(self) -> Any:
        return self.pool._models()[MODEL].llm.engine


def serving(pool: Pool, settings: Settings) -> Iterator[Running]:
    sock = bind("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(create_app(pool, settings), 5.0, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    assert ready.wait(20)
    yield Running(f"http://127.0.0.1:{sock.getsockname()[1]}", server, pool)
    server.stop()
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    # a drafter that drafts whatever a busy machine makes of it
    made = Pool({MODEL: Spec(MODEL, use=("prompt-lookup",))})
    made.load(MODEL)
    yield made
    asyncio.run(made.close())


@pytest.fixture(scope="session")
def server(pool: Pool) -> Iterator[Running]:
    yield from serving(pool, Settings())


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


@pytest.fixture(scope="session")
def ai(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture(scope="session")
def scripted() -> Iterator[tuple[openai.OpenAI, Any]]:
    """A client of a model that says what a test wrote down, and that model."""
    from scripted import scripted_server

    for url, llm in scripted_server():
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as made:
            yield made, llm
