"""`pronghorn bench kv`: what KV methods keep, and what that costs in bytes."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pronghorn.cli import bench_setup as setup
from pronghorn.cli.options import MODEL, Threads
from pronghorn.errors import RequestError

if TYPE_CHECKING:
    from pronghorn.bench.kv import Record
    from pronghorn.bench.kv_methods import Entry

LONGEST = 2048  # tokens of a text where nobody says how many


def kv(
    model: setup.Model = "",
    use: Annotated[
        list[str],
        typer.Option(
            "--use",
            "-u",
            metavar="METHOD[:KEY=VALUE,...]",
            help="A method with its options; several between spaces work together. Repeat it.",
        ),
    ] = [],  # noqa: B006
    method: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="A method at each budget; repeat it. Without it and --use: all KV policies, formats and "
            "selectors. plain: no method.",
        ),
    ] = [],  # noqa: B006
    budget: Annotated[
        list[int],
        typer.Option(min=1, metavar="N", help="Rows kept or read: 1/N of all. Repeat it; else 2, 4, 8, 16."),
    ] = [],  # noqa: B006
    task: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="kv, kv-requests, vt, mn, copy, decode (the look-up model); needle, registry, "
            "registry-requests, gsm8k (models that chat); wikitext. Repeat it; else all that suit the model.",
        ),
    ] = [],  # noqa: B006
    length: Annotated[
        int, typer.Option(min=0, help="Tokens of a text; 0: the model's context, at most 2,048.")
    ] = 0,
    items: Annotated[int, typer.Option(min=1, help="Texts of a task.")] = 50,
    data: Annotated[
        str, typer.Option(metavar="FOLDER", help="Of wikitext2 and gsm8k; ../shared/data without it.")
    ] = "",
    threads: Threads = 0,
    json_file: setup.Json = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what the file of --json has, and measure the rest.")
    ] = False,
) -> int:
    """Measure what KV methods keep: questions about long texts, some asked when the rows were chosen already,
    several requests about one text, long answers; with the bytes that are held and read, against no method.

    A method's budget is a share of the rows of a text. "held" is what the store holds of a sequence behind
    its prompt (for perplexity: at the end), tables and notes included; "read" what attention reads of it in a
    step of decoding. Intervals are of 95 %. Ctrl-C prints what was measured so far, and --resume goes on.

    [bold]Examples[/bold]

      pronghorn bench kv --method snapkv --method h2o --task needle --items 20

      pronghorn bench kv tests/models/lookup --json kv.json

      pronghorn bench kv org/name --use "snapkv:budget=512 kvfmt.int8" --use h2o:budget=512 --length 4096
    """
    from pronghorn.bench.kv import Record, record_of
    from pronghorn.bench.kv_methods import SHARES, entries, everything
    from pronghorn.bench.kv_report import tell
    from pronghorn.bench.kv_tasks import NAMES
    from pronghorn.bench.limits import machine
    from pronghorn.bench.prompts import DATA
    from pronghorn.compose import compose
    from pronghorn.llm import find_model
    from pronghorn.model.arch import build_tape
    from pronghorn.model.checkpoint import load_checkpoint
    from pronghorn.run.native import physical_cores

    wrong = [t for t in task if t not in NAMES]
    if wrong:
        raise RequestError(f"no task called {wrong[0]!r}; known: {', '.join(NAMES)}")
    for spec in use:
        compose(spec.split())
    asked = entries(method or ([] if use else everything()), use, sorted(set(budget)) or SHARES)
    setup.writable(json_file)
    if resume and not json_file:
        raise RequestError("--resume goes on with the file of --json: name it")
    name = model or MODEL
    context = build_tape(load_checkpoint(find_model(name)).config).context
    if length > context:
        raise RequestError(f"--length {length} is more than the model's context of {context}")
    record = Record(
        machine(), name, length or min(context, LONGEST), items, threads or physical_cores(),
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}",
    )  # fmt: skip
    if resume and Path(json_file).exists():
        before = record_of(json.loads(Path(json_file).read_text(encoding="utf-8")))
        if not record.same(before):
            raise RequestError(f"{json_file} is of another model, length, number of texts or machine")
        record.results = before.results
    folder = Path(data) if data else DATA

    def save() -> None:
        """Whole or not at all: what ends this run must not spoil what is there."""
        if json_file:
            part = Path(f"{json_file}.part")
            part.write_text(json.dumps(record.data()), encoding="utf-8")
            os.replace(part, json_file)

    with setup.telling(lambda: tell(record), (json_file, lambda: json.dumps(record.data()))):
        _measure(record, name, folder, asked, task, save)
    return 0


def _measure(
    record: Record, model: str, data: Path, asked: list[Entry], tasks: list[str], save: Callable[[], None]
) -> None:
    from pronghorn.bench.kv_compare import Comparison

    with setup.bars() as tick:
        Comparison(record, model, data, tick, save).run(asked, tasks)
