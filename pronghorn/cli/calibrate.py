"""`pronghorn calibrate`: what methods have to be told of a model, found by looking at it."""

from __future__ import annotations

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


def calibrate() -> None:
    """Find what a method has to be told of a model.

    [bold]Examples[/bold]

      pronghorn calibrate skip-set

      pronghorn calibrate skip-set org/name --text like-mine.txt

      pronghorn calibrate heads org/name -o heads.json
    """


def skip_set(
    model: Annotated[
        str, typer.Argument(help="Bundled model, folder, file or hub name; the bundled one without it.")
    ] = MODEL,
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
    model: Annotated[
        str, typer.Argument(help="Bundled model, folder, file or hub name; the bundled one without it.")
    ] = MODEL,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="Where the table goes; needed.")
    ] = "",
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
    from pronghorn.cli.options import open_model, weight_first
    from pronghorn.errors import RequestError

    if not out:
        raise RequestError("the table needs a file to go to: -o heads.json")
    llm = open_model(model, [*map(weight_first, use), watching()], plain=True, threads=threads)
    try:
        with show.progress("looking") as bar:
            found = find(llm, model, text(llm, tokens, repeats, seed), bar)
    finally:
        llm.close()
    found.write(Path(out))
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
