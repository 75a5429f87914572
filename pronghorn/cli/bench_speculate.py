"""`pronghorn bench speculate`: what drafters gain on this machine."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pronghorn.cli import show
from pronghorn.cli.options import MODEL, Threads, Use
from pronghorn.errors import RequestError

if TYPE_CHECKING:
    from pronghorn.bench.engines import Launch
    from pronghorn.bench.gains import Record


def speculate(
    model: Annotated[
        str, typer.Argument(help="Bundled model, folder, file or hub name; the bundled one without it.")
    ] = "",
    shape: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Random weights in a real shape: smollm2-135m, qwen2.5-0.5b or llama-3.2-1b.",
        ),
    ] = "",
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
    precision: Annotated[
        str, typer.Option(help="Of the peers: bf16, int8 or int4; that of our format without it.")
    ] = "",
    peers_folder: Annotated[
        str, typer.Option("--peers", metavar="FOLDER", help="Where the peers' environments are.")
    ] = "",
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help="Write everything measured as JSON.")
    ] = "",
    directory: Annotated[
        str, typer.Option("--dir", metavar="FOLDER", help="For checkpoints and what peers make of them.")
    ] = "",
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
    from pronghorn.bench.prompts import DATA, NAMES
    from pronghorn.bench.shapes import cache, find_shape, make
    from pronghorn.cli.bench import weight_first
    from pronghorn.compose import parse
    from pronghorn.llm import find_model
    from pronghorn.model.checkpoint import locate
    from pronghorn.run.native import physical_cores

    use = [weight_first(u) for u in use]
    if model and shape:
        raise RequestError("a model and --shape are both given: choose one")
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
    if json_file and not Path(json_file).absolute().parent.is_dir():
        raise RequestError(f"{json_file} cannot be written: its folder is not there")
    home = Path(directory) if directory else cache() / "bench"
    if shape:
        made = find_shape(shape)
        with show.progress(f"writing {shape}") as bar:
            make(made, home / shape, bar)
    place = home / shape if shape else locate(find_model(model or MODEL))
    small = locate(find_model(draft_model)) if draft_model else Path()
    threads = threads or physical_cores()
    peers = _peers(against, use, precision, place, small, home, Path(peers_folder), threads)
    record = Record(
        machine(), shape or model or MODEL, tuple(use), threads, rounds or (2 if quick else 4),
        prompts, tokens, seed, f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}",
        peers[0].precision if peers else "",
    )  # fmt: skip
    folder = Path(data) if data else DATA
    others = [] if draft else drafters()
    try:
        _measure(record, str(place), draft, others, peers, category or NAMES, batches, heats, folder)
    except KeyboardInterrupt:
        tell(record)
        print("Stopped: this is what was measured so far.")
        raise
    finally:
        if json_file:
            Path(json_file).write_text(json.dumps(record.data()), encoding="utf-8")
    tell(record)
    for line in record.wrong:
        print(f"BROKEN PROMISE: {line}")
    return 1 if record.wrong else 0


def _peers(
    against: str,
    use: list[str],
    precision: str,
    model: Path,
    draft: Path,
    home: Path,
    folder: Path,
    threads: int,
) -> list[Launch]:
    from pronghorn.bench.peers import PRECISIONS, environments, precision_of, speculating

    names = [n.strip() for n in against.split(",") if n.strip()]
    precision = precision or (precision_of(use) if names else "")
    if precision not in ("", *PRECISIONS):
        raise RequestError(f"no precision called {precision!r}; known: {', '.join(PRECISIONS)}")
    where = folder if folder.parts else environments()
    return speculating(names, model, precision, threads, home / "made", where, draft)


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
    from pronghorn.cli.bench import bars

    with bars() as tick, Race(record, data, tick) as race:
        race.start(model, asked, others)
        race.start_peers(peers)
        race.run(categories, batches, temperatures)
