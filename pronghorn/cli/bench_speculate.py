"""`pronghorn bench speculate`: what drafters gain on this machine."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pronghorn.cli import bench_setup as setup
from pronghorn.cli.options import Threads, Use
from pronghorn.errors import RequestError

if TYPE_CHECKING:
    from pronghorn.bench.engines import Launch
    from pronghorn.bench.gains import Record


def speculate(
    model: setup.Model = "",
    shape: setup.Shape = "",
    use: Use = [],  # noqa: B006  (Typer copies it)
    draft: Annotated[
        list[str],
        typer.Option(
            metavar="METHOD[:KEY=VALUE,...]",
            help="A drafter; repeat it. Without: all that need no file and no other model.",
        ),
    ] = [],  # noqa: B006
    draft_model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="A smaller model, same tokenizer, for peers that draft with one."),
    ] = "",
    category: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="copying, renaming, code, json, json-schema, free-text, mt-bench, translation, "
            "summarization, qa, math or rag; repeat it. Without: all.",
        ),
    ] = [],  # noqa: B006
    data: Annotated[
        str,
        typer.Option(metavar="FOLDER", help="Of spec_bench/question.jsonl; ../shared/data without it."),
    ] = "",
    batch: Annotated[
        list[int], typer.Option(min=1, help="Prompts at once; repeat it. Without: 1, 4 and 16.")
    ] = [],  # noqa: B006
    temperature: Annotated[list[float], typer.Option(min=0, help="Repeat it. Without: 0 and 0.8.")] = [],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=0, help="Counted rounds; 0: 4, or 2 with --quick.")] = 0,
    prompts: Annotated[
        int, typer.Option(min=0, help="Prompts of a round; 0: as the largest batch, or 4.")
    ] = 0,
    tokens: Annotated[int, typer.Option(min=2, help="New tokens of an answer, at most.")] = 96,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts and of sampling.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Batch 1, temperature 0, few prompts.")] = False,
    threads: Threads = 0,
    against: Annotated[
        str,
        typer.Option(
            metavar="PEERS",
            help="Peers in turns with ours, without and with their speculation: "
            "openvino,llama-server,transformers.",
        ),
    ] = "",
    precision: setup.Precision = "",
    peers_folder: setup.Peers = "",
    json_file: setup.Json = "",
    directory: setup.Directory = "",
) -> int:
    """Measure what drafters gain: tokens a second against plain decoding of the same engine, in turns in one
    process, tokens a step, and draft rows run for each token.

    Drafters that promise the tokens of plain decoding are held to it: a difference ends this with an error.
    Ctrl-C prints what was measured so far.

    [bold]Examples[/bold]

      pronghorn bench speculate --quick

      pronghorn bench speculate --draft prompt-lookup:length=6 --category copying --category code

      pronghorn bench speculate --batch 1 --batch 8 --temperature 0.8 --json gains.json

      pronghorn bench speculate --shape smollm2-135m --use int8 --quick --against openvino,llama-server
    """
    from pronghorn.bench.answers import drafters, spec_of
    from pronghorn.bench.gains import Record
    from pronghorn.bench.gains_report import tell
    from pronghorn.bench.limits import machine
    from pronghorn.bench.peers import speculating
    from pronghorn.bench.prompts import DATA, NAMES
    from pronghorn.compose import parse
    from pronghorn.llm import find_model
    from pronghorn.model.checkpoint import locate
    from pronghorn.run.native import physical_cores

    wrong = [c for c in category if c not in NAMES]
    if wrong:
        raise RequestError(f"no category called {wrong[0]!r}; known: {', '.join(NAMES)}")
    for name in draft:
        parse(spec_of(name))
    batches = sorted(set(batch)) or ([1] if quick else [1, 4, 16])
    heats = sorted(set(temperature)) or ([0.0] if quick else [0.0, 0.8])
    prompts = prompts or math.lcm(*batches, *([] if max(batches) >= 4 else [4]))
    uneven = [b for b in batches if prompts % b]
    if uneven:
        raise RequestError(f"--prompts {prompts} are no whole batches of {uneven[0]}")
    setup.writable(json_file)
    what = setup.subject(model, shape, use, against, precision, peers_folder, directory)
    small = locate(find_model(draft_model)) if draft_model else Path()
    threads = threads or physical_cores()
    peers = speculating(
        what.peers, what.place, what.precision, threads, what.made, what.environments, small
    )  # fmt: skip
    record = Record(
        machine(), what.name, tuple(what.use), threads, rounds or (2 if quick else 4), prompts, tokens, seed,
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}", what.precision,
    )  # fmt: skip
    folder = Path(data) if data else DATA
    others = [] if draft else drafters()
    with setup.telling(lambda: tell(record), (json_file, lambda: json.dumps(record.data()))):
        _measure(record, str(what.place), draft, others, peers, category or NAMES, batches, heats, folder)
    for line in record.wrong:
        print(f"BROKEN PROMISE: {line}")
    return 1 if record.wrong else 0


def _measure(
    record: Record,
    model: str,
    asked: list[str],
    others: list[str],
    peers: list[Launch],
    categories: Sequence[str],
    batches: list[int],
    temperatures: list[float],
    data: Path,
) -> None:
    from pronghorn.bench.speculate import Race

    with setup.bars() as tick, Race(record, data, tick) as race:
        race.start(model, asked, others)
        race.start_peers(peers)
        race.run(categories, batches, temperatures)
