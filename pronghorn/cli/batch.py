"""`pronghorn batch`: answer a file of requests."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pronghorn.cli.options import MODEL, Backend, Draft, Model, Plain, Threads, Use, with_draft
from pronghorn.errors import RequestError

if TYPE_CHECKING:
    from pronghorn.serve.batch import Job, Tally

GIB = 1 << 30
FOREVER = 1e9  # seconds that an answer may take: nobody waits for it


def batch(
    requests: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests, one JSON object a line.")],
    answers: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Where answers go, one a line.")],
    model: Model = MODEL,
    use: Use = [],  # noqa: B006  (Typer copies it)
    draft: Draft = "",
    plain: Plain = False,
    backend: Backend = "native",
    threads: Threads = 0,
    kv_gb: Annotated[float, typer.Option(min=0, help="GiB of KV; 0 for a quarter of what is free.")] = 0,
    window: Annotated[
        int, typer.Option(min=1, max=100_000, help="Requests looked at together for what they share.")
    ] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="The totals as one JSON object on stdout.")] = False,
) -> None:
    """Answer a file of requests in the OpenAI batch format, in the order that costs least.

    What prompts begin with in common is run once. An answer is written when it is there; started again with
    the same files, it goes on with what is missing.

    [bold]Examples[/bold]

      echo '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}}' > in.jsonl

      pronghorn batch in.jsonl out.jsonl

      pronghorn batch --model org/name --use token-recycling in.jsonl out.jsonl
    """  # noqa: E501  (a line to copy)
    from pronghorn.serve.batch import Tally, answered, read_jobs

    jobs = read_jobs(requests)
    if answers.exists() and answers.samefile(requests):
        raise RequestError("the answers would overwrite the requests: name another file")
    done = answered(answers)
    left = [job for job in jobs if job.custom_id not in done]
    if len(left) < len(jobs):
        print(f"{len(jobs) - len(left):,} of {len(jobs):,} are answered already", file=sys.stderr)
    begun = time.perf_counter()
    tally = Tally()
    if left:
        tally = _run(
            left, answers, model, with_draft([*use], draft), plain, backend, threads, int(kv_gb * GIB), window
        )
    seconds = time.perf_counter() - begun
    _tell(tally, seconds, as_json)
    if tally.failed:
        raise RequestError(
            f"{len(tally.failed):,} requests were not answered, the first of them {tally.failed[0]}; start "
            "again to try them once more"
        )


def _run(
    jobs: list[Job], answers: Path, model: str, use: list[Any], plain: bool, backend: str, threads: int,
    kv_bytes: int, window: int,
) -> Tally:  # fmt: skip
    import asyncio

    from pronghorn.cli.options import PLAIN
    from pronghorn.cli.serve import names
    from pronghorn.cli.show import progress
    from pronghorn.llm import DEFAULT_USE
    from pronghorn.serve.app import create_app
    from pronghorn.serve.batch import run
    from pronghorn.serve.pool import Pool, Spec
    from pronghorn.serve.settings import Settings

    defaults = [("batch" if name == "fcfs" else name) for name in (PLAIN if plain else DEFAULT_USE)]
    ((name, model),) = names([model]).items()
    spec = Spec(model, tuple(use), backend, threads, kv_bytes, tuple(defaults))
    # a request of many prompts waits as many times
    pool = Pool({name: spec}, max_waiting=1 << 20)
    app = create_app(pool, Settings(timeout=FOREVER, schema_timeout=10.0))

    async def go(tick: Callable[[int, int], None]) -> Tally:
        try:
            return await run(
                app, jobs, answers, name, window, lambda t: tick(t.done + len(t.failed), len(jobs))
            )
        finally:
            await pool.close()

    with progress("answering") as tick:
        return asyncio.run(go(tick))


def _tell(tally: Tally, seconds: float, as_json: bool) -> None:
    from pronghorn.cli import show

    if as_json:
        show.as_json({
            "answered": tally.done, "refused": tally.refused, "failed": tally.failed,
            "prompt_tokens": tally.prompt_tokens, "cached_tokens": tally.cached_tokens,
            "new_tokens": tally.new_tokens, "seconds": seconds,
        })  # fmt: skip
        return
    shared = tally.cached_tokens / tally.prompt_tokens if tally.prompt_tokens else 0.0
    parts = [
        f"{tally.done:,} answered",
        f"{tally.refused:,} of them refused" if tally.refused else "",
        f"{tally.new_tokens:,} new tokens in {seconds:.1f} s",
        f"{tally.prompt_tokens:,} prompt tokens, {shared:.0%} of them taken from others",
    ]
    print(" · ".join(p for p in parts if p), file=sys.stderr)
