"""`pronghorn serve`: models over HTTP."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pronghorn.cli.options import MODEL, PLAIN, Backend, Draft, Plain, Threads, Use, with_draft
from pronghorn.errors import RequestError

if TYPE_CHECKING:
    from pronghorn.serve.pool import Pool, Spec

GIB = 1 << 30
TBT = 50.0  # milliseconds between tokens to aim for


def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Models as for --model elsewhere, or NAME=MODEL."),
    ] = [MODEL],  # noqa: B006  (Typer copies it)
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8000,
    api_key: Annotated[
        list[str],
        typer.Option(
            metavar="KEY",
            help="Ask for this key; repeat it. Also from PRONGHORN_API_KEY, with commas between.",
        ),
    ] = [],  # noqa: B006
    use: Use = [],  # noqa: B006
    draft: Draft = "",
    plain: Plain = False,
    backend: Backend = "native",
    threads: Threads = 0,
    kv_gb: Annotated[
        float, typer.Option(min=0, help="GiB of KV per model; 0 for a quarter of --memory-gb.")
    ] = 0,
    memory_gb: Annotated[
        float,
        typer.Option(
            min=0, help="GiB that all loaded models may take together; 0 for nine tenths of what is free."
        ),
    ] = 0,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; more get a 429.")] = 4096,
    max_body: Annotated[float, typer.Option(min=0.001, max=1024, help="MiB of a request.")] = 8,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that an answer may take.")] = 600,
    tbt: Annotated[
        float, typer.Option(min=1, help="Milliseconds between two tokens of an answer to aim for.")
    ] = TBT,
    disk_cache: Annotated[
        str, typer.Option(metavar="FOLDER", help="Keep stored prompts there, for after a restart too.")
    ] = "",
    drain: Annotated[float, typer.Option(min=0, help="Seconds to finish what runs when asked to stop.")] = 30,
    cors: Annotated[
        list[str], typer.Option(metavar="ORIGIN", help='A web origin whose pages may ask; "*" for all.')
    ] = [],  # noqa: B006
    as_json: Annotated[
        bool, typer.Option("--json", help="Log each request on stderr as a JSON object.")
    ] = False,
) -> None:
    """Serve models over HTTP, by the OpenAI API, with a page to look at.

    Ctrl-C (or SIGTERM) finishes what runs, a second one stops at once.

    [bold]Examples[/bold]

      pronghorn serve

      pronghorn serve org/name --port 9000 --api-key secret --use token-recycling

      pronghorn serve small=pronghorn-tiny big=./models/big --memory-gb 16

      curl localhost:8000/v1/chat/completions -H "Content-Type: application/json" -d '{"messages": [{"role": "user", "content": "Hello"}]}'
    """  # noqa: E501  (a line to copy)
    from pronghorn.serve.bind import bind

    named = names(models)
    keys = [k.strip() for k in [*api_key, *os.environ.get("PRONGHORN_API_KEY", "").split(",")] if k.strip()]
    sock = bind(host, port)  # before anything is loaded, so that a taken port is told at once

    def load() -> Pool:
        from pronghorn.serve.pool import Pool

        of = specs(named, with_draft([*use], draft), plain, tbt, disk_cache)
        of = {
            n: replace(s, backend=backend, threads=threads, kv_bytes=int(kv_gb * GIB)) for n, s in of.items()
        }
        pool = Pool(of, int(memory_gb * GIB), max_waiting)
        pool.load(next(iter(named)))  # the others when they are asked for
        return pool

    made = _Later(load)

    from pronghorn.serve.app import create_app
    from pronghorn.serve.logs import to_stderr
    from pronghorn.serve.server import Server
    from pronghorn.serve.settings import Settings

    to_stderr(as_json)
    pool = made.get()
    settings = Settings(
        keys=tuple(keys), origins=tuple(cors), max_body=int(max_body * (1 << 20)), timeout=timeout
    )
    server = Server(create_app(pool, settings), drain, lambda: told(named, host, sock.getsockname()[1]))
    server.run(sockets=[sock])
    asyncio.run(pool.close())


def names(models: list[str]) -> dict[str, str]:
    """Name -> model. A model's own name is the last part of its path, or what it is called otherwise."""
    named: dict[str, str] = {}
    for given in models:
        name, equals, model = given.partition("=")
        if not equals:
            name, model = (Path(given).resolve().name if Path(given).exists() else given), given
        if not name or not model:
            raise RequestError(f"{given!r} is not a model, nor NAME=MODEL")
        if name in named:
            raise RequestError(f"two models are called {name!r}: name them, as in first={named[name]}")
        named[name] = model
    return named


def told(named: dict[str, str], host: str, port: int) -> None:
    """One line that says where everything is."""
    shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)
    url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    print(f"{', '.join(named)}: {url}/v1  page: {url}/  (Ctrl-C stops)", flush=True)


def specs(named: dict[str, str], use: list[Any], plain: bool, tbt: float, disk_cache: str) -> dict[str, Spec]:
    """What each name stands for. Unless told otherwise, users share a model fairly and no prompt holds up the
    others' tokens."""
    from pronghorn.compose import resolve
    from pronghorn.llm import DEFAULT_USE
    from pronghorn.serve.pool import Spec

    if plain and disk_cache:
        raise RequestError("--plain stores no prompts: leave out --disk-cache, or --plain")
    taken = {resolve(spec.partition(":")[0].strip())[0] for spec in use if isinstance(spec, str)}
    if "sched" in taken and tbt != TBT:
        raise RequestError("--tbt is the default scheduler's: tell yours, as in --use sarathi:tbt=0.05")
    if "reuse" in taken and disk_cache:
        raise RequestError("--disk-cache is the default method's: tell yours, as in --use prefix:disk=FOLDER")
    own = {"fcfs": f"vtc:tbt={tbt / 1e3:g}"}
    if disk_cache:
        own["prefix"] = f'prefix:disk="{disk_cache}"'
    defaults = tuple(own.get(m, m) for m in (PLAIN if plain else DEFAULT_USE))
    return {name: Spec(model, tuple(use), defaults=defaults) for name, model in named.items()}


class _Later:
    """What a thread makes while this one imports what it takes to serve it."""

    def __init__(self, make: Callable[[], Pool]) -> None:
        self._made: list[Pool] = []
        self._error: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(make,))
        self._thread.start()

    def _run(self, make: Callable[[], Pool]) -> None:
        try:
            self._made.append(make())
        except BaseException as error:
            self._error.append(error)

    def get(self) -> Pool:
        self._thread.join()
        for error in self._error:
            raise error
        return self._made[0]
