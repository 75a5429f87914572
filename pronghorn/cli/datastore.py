"""`pronghorn datastore`: texts in a file for drafters to look continuations up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pronghorn.cli import show
from pronghorn.cli.options import MODEL, AsJson, Model
from pronghorn.errors import MethodError, RequestError

if TYPE_CHECKING:
    from pronghorn.datastore import Datastore


def datastore() -> None:
    """Texts to look continuations up in, for the drafters rest and rasd.

    [bold]Examples[/bold]

      pronghorn datastore build code.store src/*.py

      pronghorn datastore info code.store
    """


def build(
    out: Annotated[str, typer.Argument(help="The file to write.")],
    texts: Annotated[
        list[str],
        typer.Argument(metavar="TEXT...", help='Text files; .jsonl: strings, "text" or "messages" a line.'),
    ],
    model: Model = MODEL,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a datastore of texts like those that MODEL will write: its own answers, documents, source code.

    It holds the tokens of MODEL's vocabulary and serves every model that has the same. It takes 4 to 12 bytes
    a token on the disk, and some 50 in memory while it is built. Whoever uses it can be shown its texts.

    [bold]Examples[/bold]

      pronghorn datastore build code.store src/*.py

      pronghorn datastore build chats.store answers.jsonl --model org/name

      pronghorn run --use rest:store=code.store "Write a function that adds two numbers."
    """
    from pronghorn.datastore.build import build as write
    from pronghorn.llm import find_model
    from pronghorn.model.checkpoint import load_checkpoint
    from pronghorn.model.tokenizer import load_tokenizer

    path = Path(out)
    if path.is_dir():
        raise RequestError(f"{path} is a folder: name a file")
    if path.exists() and not force:
        raise RequestError(f"{path} exists already: name another file, or replace it with --force")
    checkpoint = load_checkpoint(find_model(model))
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.gguf_metadata)
    start = time.perf_counter()
    with show.progress(f"writing {path.name}") as bar:
        head = write(path, [Path(t) for t in texts], tokenizer, model, bar)
    seconds = time.perf_counter() - start
    if as_json:
        show.as_json({
            "path": out, "bytes": head.whole, "tokens": head.n_tokens - head.n_texts, "texts": head.n_texts,
            "seconds": seconds,
        })  # fmt: skip
        return
    print(
        f"wrote {path} ({show.size(head.whole)}): {head.n_tokens - head.n_texts:,} tokens of "
        f"{head.n_texts:,} texts in {seconds:.1f} s"
    )


def info(
    file: Annotated[str, typer.Argument(help="A datastore.")],
    check: Annotated[bool, typer.Option("--check", help="Read all of it and compare its digest.")] = False,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="Say whether this model can use it.")
    ] = "",
    as_json: AsJson = False,
) -> int:
    """Say what a datastore holds. The status is 1 where --model cannot use it.

    [bold]Examples[/bold]

      pronghorn datastore info code.store

      pronghorn datastore info code.store --check --model org/name
    """
    from pronghorn.datastore import Datastore

    held = Datastore(file)
    h = held.head
    if check:
        held.verify()
    fits = _fits(held, model) if model else ""
    if as_json:
        show.as_json({
            "path": file, "bytes": h.whole, "tokens": h.n_tokens - h.n_texts, "texts": h.n_texts,
            "vocabulary": h.n_vocab, "built_for": h.model, "tokenizer": h.tokenizer.hex(), "checked": check,
            **({"fits": not fits} if model else {}),
        })  # fmt: skip
        return int(bool(fits))
    pairs = [
        ("tokens", f"{h.n_tokens - h.n_texts:,}"), ("texts", f"{h.n_texts:,}"), ("size", show.size(h.whole)),
        ("vocabulary", f"{h.n_vocab:,} tokens, built for {h.model}"), ("tokenizer", h.tokenizer.hex()[:16]),
    ]  # fmt: skip
    if check:
        pairs.append(("checked", "every byte is as it was written"))
    if model:
        pairs.append((model, fits or "can use it"))
    show.facts(file, pairs)
    return int(bool(fits))


def _fits(held: Datastore, model: str) -> str:
    """Why a model cannot use a datastore, "" where it can."""
    from pronghorn.llm import find_model
    from pronghorn.model.checkpoint import load_checkpoint
    from pronghorn.model.tokenizer import load_tokenizer

    checkpoint = load_checkpoint(find_model(model))
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.gguf_metadata)
    try:
        held.check(tokenizer, tokenizer.n_vocab)
    except MethodError as e:
        return str(e)
    return ""
