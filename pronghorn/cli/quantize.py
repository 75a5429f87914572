"""`pronghorn quantize`: a checkpoint whose matrices are packed ahead, calibrated on text where that helps."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pronghorn.cli import show
from pronghorn.cli.options import AsJson, Threads
from pronghorn.errors import MethodError, RequestError, UnsupportedError

if TYPE_CHECKING:
    from pronghorn.llm import LLM
    from pronghorn.quantize.evaluate import Loss

DEFAULT = ("int4",)
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def quantize(
    model: Annotated[str, typer.Argument(help="Bundled model, folder, file or hub name.")],
    out: Annotated[str, typer.Argument(help="The folder to write.")],
    use: Annotated[
        list[str],
        typer.Option("--use", "-u", metavar="FORMAT[:KEY=VALUE,...]", help="A weight format; repeat it."),
    ] = list(DEFAULT),  # noqa: B006  (Typer copies it)
    method: Annotated[
        str, typer.Option(help="rtn, finequant or hqq (weights alone); gptq, awq or awq-gptq (with text).")
    ] = "rtn",
    calibrate: Annotated[
        str, typer.Option(metavar="FILE", help="Text like that which the model will meet: .txt or .jsonl.")
    ] = "",
    evaluate: Annotated[
        str, typer.Option(metavar="FILE", help="Other text, to report perplexity and divergence on.")
    ] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of text to calibrate and evaluate on.")] = 32768,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory to stay within, as in 4G.")] = "4G",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Write MODEL with packed matrices; `pronghorn run -m OUT` maps them as they lie.

    A format's option `only` confines it to tensors by name. A run that was cut short goes on where it was
    when the same command is given again.

    [bold]Examples[/bold]

      pronghorn quantize pronghorn-tiny tiny-int4

      pronghorn quantize org/name out --use int4:group=32 --use "int8:only=lm_head*+*embed*" --method gptq \
--calibrate mine.txt --evaluate held-out.txt
    """
    from pronghorn.compose import compose
    from pronghorn.llm import find_model
    from pronghorn.model.arch import build_tape
    from pronghorn.model.checkpoint import load_checkpoint, validate
    from pronghorn.model.tokenizer import load_tokenizer
    from pronghorn.quantize import run, text

    by = run.quantizer(method)
    formats = compose([_spec(u) for u in use]).weight
    _check(formats, method)
    room = _bytes(memory)
    if by.text and not calibrate:
        raise RequestError(
            f"{method} looks at text: name a file of what the model will meet with --calibrate, or use "
            "--method rtn, which looks at weights alone"
        )
    texts = text.read(Path(calibrate)) if by.text else []
    judged = text.read(Path(evaluate)) if evaluate else []
    found = find_model(model)
    checkpoint = load_checkpoint(found)
    tape = build_tape(checkpoint.config)
    validate(checkpoint, tape.expected())
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.gguf_metadata)
    n_tokens = run.room_for(tape, by, room, tokens if by.text else 1)
    none = text.NONE
    ids = text.sequences(texts, tokenizer, n_tokens, min(run.LENGTH, tape.context)) if by.text else none
    with show.progress(f"{method} {Path(out).name}") as bar:
        done = run.quantize(checkpoint, tape, formats, method, ids, Path(out), bar)
    notes = list(done.notes)
    if by.text and ids.size < tokens:
        cause = "more do not fit --memory" if n_tokens < tokens else "the text has no more"
        notes.append(f"calibrated on {ids.size} tokens: {cause}")
    loss = _loss(found, out, judged, tokens, threads, notes) if judged else None
    if as_json:
        about = asdict(done) | {"path": str(done.path), "notes": notes}
        show.as_json(about | ({"evaluation": asdict(loss)} if loss else {}))
        return
    print(f"wrote {done.path} ({show.size(done.nbytes)}, {done.bits:.2f} bits a weight of what was packed)")
    if loss:
        print(
            f"perplexity {loss.plain:.4f} -> {loss.ppl:.4f}, {loss.ratio - 1:+.2%} ± {loss.spread:.2%}; "
            f"divergence {loss.kl:.5f} nats; same likeliest token at {loss.top1:.1%} of {loss.n} tokens"
        )
    for note in notes:
        print(f"note: {note}")


def _spec(use: str) -> str:
    """A format's spec: here a name needs no slot."""
    from pronghorn.compose import names

    name = use.partition(":")[0].strip()
    return f"weight.{use}" if name in names()["weight"] else use


def _check(formats: tuple[Any, ...], method: str) -> None:
    if not formats:
        raise MethodError("--use names no weight format, as in --use int4; `pronghorn methods` lists them")
    grids = [f.grid for f in formats if hasattr(f, "grid")]
    if method == "hqq" and any(g.offset != "value" for g in grids):
        raise MethodError("hqq finds offsets: use int4, int3 or int2 with symmetric=false")


def _bytes(text: str) -> int:
    unit = text.strip().upper().rstrip("B").rstrip("I")[-1:]
    number = text.strip().upper().rstrip("B").rstrip("I").rstrip("KMGT")
    try:
        return int(float(number) * UNITS[unit if unit in "KMGT" else ""])
    except (ValueError, KeyError, OverflowError):
        raise RequestError(f"--memory is {text!r:.40}: give a size such as 4G or 800M") from None


def _loss(source: Any, out: str, judged: list[str], tokens: int, threads: int, notes: list[str]) -> Loss:
    from pronghorn.quantize import evaluate, text

    plain = _open(source, threads, notes)
    length = min(evaluate.LENGTH, plain.engine.bound.context)
    ids = text.sequences(judged, plain.tokenizer, tokens, length)
    return evaluate.compare(plain.engine, _open(out, threads, notes).engine, ids)


def _open(model: Any, threads: int, notes: list[str]) -> LLM:
    """The model on the native runner, or on the reference where there is no kernel."""
    from pronghorn.cli.options import open_model

    try:
        return open_model(model, [], plain=True, threads=threads)
    except UnsupportedError as error:
        notes.append(f"evaluated with the reference runner: {error}")
        return open_model(model, [], plain=True, backend="ref")
