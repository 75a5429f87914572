"""`pronghorn calibrate`: what methods have to be told of a model, found by looking at it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pronghorn.cli import show
from pronghorn.cli.options import MODEL, AsJson, Threads, Use

if TYPE_CHECKING:
    from pronghorn.calibrate.skips import Found
    from pronghorn.calibrate.table import Table
    from pronghorn.calibrate.trial import Material, Trial
    from pronghorn.llm import LLM

Tick = Callable[[int, int], None]
Model = Annotated[
    str, typer.Argument(help="Bundled model, folder, file or hub name; the bundled one without it.")
]
Out = Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="Where the table goes; needed.")]


def calibrate() -> None:
    """Find what a method has to be told of a model.

    [bold]Examples[/bold]

      pronghorn calibrate skip-set

      pronghorn calibrate skip-set org/name --text like-mine.txt

      pronghorn calibrate heads org/name -o heads.json

      pronghorn calibrate codebooks org/name -o books.json --text like-mine.txt
    """


def skip_set(
    model: Model = MODEL,
    text: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Text like that which the model will write: .txt or .jsonl. Without: its own answers to "
            "prompts of several kinds.",
        ),
    ] = "",
    use: Use = [],  # noqa: B006  (Typer copies it)
    places: Annotated[int, typer.Option(min=1, help="Places of the text where choices are compared.")] = 256,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of the trial afterwards, at most.")] = 8,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Find the sublayers that MODEL drafts best without, for `--draft self-skip`, and try what they gain.

    Sublayers are left out one after another, each time the one without which the model's choices stay most
    alike. Then it answers prompts with that drafter and without, in turns. Ctrl-C ends the search with the
    best set so far.

    [bold]Examples[/bold]

      pronghorn calibrate skip-set

      pronghorn calibrate skip-set org/name --use int8 --text answers.jsonl

      pronghorn run --model org/name --draft self-skip:layers=3m+5a "Tell a story."
    """
    from pronghorn.calibrate.trial import trial
    from pronghorn.cli.options import open_model, weight_first

    use = [weight_first(u) for u in use]
    found, material = _search(model, text, use, places, threads, as_json)
    llm = open_model(model, [*use, f"draft.{found.spec}"], plain=True, threads=threads)
    try:
        with show.progress("trying") as bar:
            measured = trial(llm, material.prompts[:prompts], bar)
    except KeyboardInterrupt:
        _tell(found, None, as_json)
        raise
    finally:
        llm.close()
    _tell(found, measured, as_json)


def _search(
    model: str, text: str, use: list[str], places: int, threads: int, as_json: bool
) -> tuple[Found, Material]:
    """The model is let go of afterwards: the trial opens it with the drafter."""
    from pronghorn.calibrate.skips import Search
    from pronghorn.calibrate.trial import given, own
    from pronghorn.cli.options import open_model

    llm = open_model(model, use, plain=True, threads=threads)
    try:
        material = given(llm, Path(text)) if text else own(llm)
        search = Search(llm, material.texts, places)
        try:
            with show.progress("leaving out") as bar:
                return search.run(bar), material
        except KeyboardInterrupt:
            if search.best is not None:
                _tell(search.best, None, as_json)
            raise
        finally:
            search.close()
    finally:
        llm.close()


def _tell(found: Found, measured: Trial | None, as_json: bool) -> None:
    if as_json:
        told: dict[str, Any] = asdict(found) | {"draft": found.spec}
        show.as_json(told | {"trial": asdict(measured) | {"gain": measured.gain} if measured else None})
        return
    print(
        f"without {found.layers} the likeliest token stays the same at {found.agree:.0%} of the places, and "
        f"{found.share:.0%} of the weights are read"
    )
    if measured is None:
        print("stopped: this is the best set so far, and it was not tried")
    else:
        print(
            f"tried: plain {measured.plain:.0f} tokens/s, self-skip {measured.drafted:.0f}, "
            f"{measured.gain:.2f} times as fast"
            + ("" if measured.gain > 1 else ": on this machine it does not pay for this model")
        )
    print(f"--draft {found.spec}")


def heads(
    model: Model = MODEL,
    out: Out = "",
    use: Use = [],  # noqa: B006  (Typer copies it)
    tokens: Annotated[
        int, typer.Option(min=1, max=1 << 20, help="Random tokens that repeat; fewer in a short context.")
    ] = 512,
    repeats: Annotated[int, typer.Option(min=2, max=64, help="Times that they are there.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Which random tokens.")] = 0,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Find the heads of MODEL that retrieve, for `razor-attention` and `duo-attention`.

    The model reads random tokens that repeat. Heads that attend to earlier occurrences of a token, or to what
    followed them, retrieve. What each head does is written to a table that those methods read.

    [bold]Examples[/bold]

      pronghorn calibrate heads -o heads.json

      pronghorn calibrate heads org/name -o heads.json --use int8 --tokens 2500

      pronghorn run --use razor-attention:table=heads.json "Tell a story."
    """
    from pronghorn.calibrate.heads import find, text, watching

    found = _found(
        out, model, use, watching(), threads,
        lambda llm, tick: find(llm, model, text(llm, tokens, repeats, seed), tick),
    )  # fmt: skip
    _tell_heads(found, out, as_json)


def _tell_heads(found: Table, out: str, as_json: bool) -> None:
    layers, n_kv = found.shape
    order = sorted(
        ((found.induction[i][h], found.echo[i][h], i, h) for i in range(layers) for h in range(n_kv)),
        key=lambda x: -x[0],
    )
    if as_json:
        show.as_json({**asdict(found), "table": out, "heads": [i * n_kv + h for _, _, i, h in order]})
        return
    rows = [[str(i * n_kv + h), str(i), str(h), f"{a:.3f}", f"{b:.3f}"] for a, b, i, h in order[:10]]
    show.table(
        f"{layers} layers of {n_kv} KV heads, {found.tokens:,} tokens; those that retrieve most",
        ["heads=", "layer", "head", "induction", "echo"], rows, right=range(5),
    )  # fmt: skip
    print(f"--use razor-attention:table={out}")


Texts = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="Text like that which the model will read: .txt or .jsonl. Without: its own answers to prompts "
        "of several kinds.",
    ),
]


def channels(
    model: Model = MODEL,
    out: Out = "",
    text: Texts = "",
    use: Use = [],  # noqa: B006  (Typer copies it)
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Find the channels of MODEL's keys that its scores come from, for `double-sparsity`.

    The model reads texts. How large each channel's part of scores is, is written to a table.

    [bold]Examples[/bold]

      pronghorn calibrate channels -o channels.json

      pronghorn calibrate channels org/name -o channels.json --text like-mine.txt

      pronghorn run --use double-sparsity:table=channels.json "Tell a story."
    """
    from pronghorn.calibrate.keys import find_channels

    found = _of_texts(out, model, text, use, threads, find_channels)
    if as_json:
        show.as_json({**asdict(found), "table": out})
        return
    layers, n_kv, dim = found.shape
    print(f"{layers} layers of {n_kv} KV heads, {dim} channels, {found.tokens:,} tokens")
    print(f"--use double-sparsity:table={out}")


def codebooks(
    model: Model = MODEL,
    out: Out = "",
    text: Texts = "",
    codes: Annotated[int, typer.Option(min=1, help="Codes of a key, a byte each.")] = 8,
    use: Use = [],  # noqa: B006  (Typer copies it)
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Make codebooks of MODEL's keys, for `a2ats`.

    The model reads texts. Its keys are clustered so that their products with its queries change least.

    [bold]Examples[/bold]

      pronghorn calibrate codebooks -o books.json

      pronghorn calibrate codebooks org/name -o books.json --codes 16 --text like-mine.txt

      pronghorn run --use a2ats:table=books.json "Tell a story."
    """
    from pronghorn.calibrate.keys import find_codebooks

    found = _of_texts(
        out, model, text, use, threads,
        lambda llm, name, texts, tick: find_codebooks(llm, name, texts, codes, tick),
    )  # fmt: skip
    layers, n_kv, _ = found.shape
    spec = f"a2ats:table={out},codes={found.groups}"
    if as_json:
        show.as_json({
            "model": found.model, "fingerprint": found.fingerprint, "tokens": found.tokens,
            "shape": list(found.shape), "codes": found.groups, "table": out, "use": spec,
        })  # fmt: skip
        return
    print(f"{layers} layers of {n_kv} KV heads, {found.groups} codes of a key, {found.tokens:,} tokens")
    print(f"--use {spec}")


def _of_texts(
    out: str, model: str, text: str, use: list[str], threads: int,
    find: Callable[[LLM, str, list[list[int]], Tick], Any],
) -> Any:  # fmt: skip
    """What `find` finds of the model with texts; it stands in `out` then."""
    from pronghorn.calibrate.keys import Watch
    from pronghorn.calibrate.trial import given, own

    def with_texts(llm: LLM, tick: Tick) -> Any:
        material = given(llm, Path(text)) if text else own(llm)
        return find(llm, model, material.texts, tick)

    return _found(out, model, use, Watch(), threads, with_texts)


def _found(
    out: str, model: str, use: list[str], watch: Any, threads: int, find: Callable[[LLM, Tick], Any]
) -> Any:
    """What `find` finds of the model that `watch` looks at; it stands in `out` then."""
    from pronghorn.cli.options import open_model, weight_first
    from pronghorn.errors import RequestError

    if not out:
        raise RequestError("the table needs a file to go to: -o table.json")
    llm = open_model(model, [*map(weight_first, use), watch], plain=True, threads=threads)
    try:
        with show.progress("looking") as bar:
            found = find(llm, bar)
    finally:
        llm.close()
    found.write(Path(out))
    return found
