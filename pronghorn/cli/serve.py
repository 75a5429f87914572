"""`pronghorn serve`: models over HTTP."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pronghorn.cli.options import MODEL, Backend, Plain, Threads, Use
from pronghorn.errors import RequestError

if TYPE_CHECKING:
    from pronghorn.serve.pool import Pool
    from pronghorn.serve.settings import Settings

GIB = 1 << 30


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
            metavar="KEY", help="Ask for this key; repeat it. Also from PRONGHORN_API_KEY, with commas between."
        ),
    ] = [],  # noqa: B006
    use: Use = [],  # noqa: B006
    plain: Plain = False,
    backend: Backend = "native",
    threads: Threads = 0,
    kv_gb: Annotated[float, typer.Option(min=0, help="GiB of KV per model; 0 for a quarter of what is free.")] = 0,
    memory_gb: Annotated[
        float, typer.Option(min=0, help="GiB that all loaded models may take together; 0 for what is free.")
    ] = 0,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; more get a 429.")] = 4096,
    max_body: Annotated[float, typer.Option(min=0.001, max=1024, help="MiB of a request.")] = 8,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that an answer may take.")] = 600,
    tbt: Annotated[
        float, typer.Option(min=1, help="Milliseconds between two tokens of an answer to aim for.")
    ] = 50,
    disk_cache: Annotated[
        str, typer.Option(metavar="FOLDER", help="Keep stored prompts there, for after a restart too.")
    ] = "",
    drain: Annotated[float, typer.Option(min=0, help="Seconds to finish what runs when asked to stop.")] = 30,
    cors: Annotated[
        list[str], typer.Option(metavar="ORIGIN", help='A web origin whose pages may ask; "*" for all.')
    ] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Log each request on stderr as a JSON object.")] = False,
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
    own = methods(use, plain, tbt, disk_cache)
    made = _Later(lambda: open_pool(named, own, backend, threads, kv_gb, memory_gb, max_waiting))

    from pronghorn.serve.app import create_app
    from pronghorn.serve.server import Server
    from pronghorn.serve.settings import Settings

    log(as_json)
    pool = made.get()
    settings = Settings(
        keys=tuple(keys), origins=tuple(cors), max_body=int(max_body * (1 << 20)), timeout=timeout
    )
    server = Server(create_app(pool, settings), drain, lambda: told(named, host, sock.getsockname()[1]))
    server.run(sockets=[sock])


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


def methods(use: list[str], plain: bool, tbt: float, disk_cache: str) -> tuple[list[str], list[str]]:
    """What every model runs under, and what fills the slots that this leaves empty. Users share a server
    fairly, and no prompt holds up the others' tokens."""
    from pronghorn.cli.options import PLAIN
    from pronghorn.llm import DEFAULT_USE

    defaults = [*(PLAIN if plain else DEFAULT_USE)]
    defaults[defaults.index("fcfs")] = f"vtc:tbt={tbt / 1e3:g}"
    if disk_cache:
        if plain:
            raise RequestError("--plain stores no prompts: leave out --disk-cache, or --plain")
        defaults[defaults.index("prefix")] = f'prefix:disk="{disk_cache}"'
    return use, defaults


def open_pool(
    named: dict[str, str], own: tuple[list[str], list[str]], **given: Any
) -> Pool:
    """The models behind their names; the first one is loaded."""
    from pronghorn.serve.pool import Pool

    raise NotImplementedError


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


def log(as_json: bool) -> None:
    """Warnings and worse go to stderr; each request as well, as JSON, when asked for."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if as_json else logging.Formatter("pronghorn: %(message)s"))
    logger = logging.getLogger("pronghorn")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if as_json else logging.WARNING)
