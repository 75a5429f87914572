"""`pronghorn run`: answer one prompt."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pronghorn.cli import show
from pronghorn.cli.options import (
    MODEL,
    AsJson,
    Backend,
    Draft,
    Model,
    Plain,
    Regex,
    Schema,
    Threads,
    Use,
    open_model,
    read_prompt,
    with_constraint,
    with_draft,
)
from pronghorn.errors import PronghornError, RequestError

if TYPE_CHECKING:
    from pronghorn.llm import LLM, Answer, Stream


def run(
    prompt: Annotated[str, typer.Argument(help='The prompt; "-" or nothing reads what is piped in.')] = "",
    model: Model = MODEL,
    use: Use = [],  # noqa: B006  (Typer copies it)
    draft: Draft = "",
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="New tokens, at most.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    stop: Annotated[list[str], typer.Option(help="End before this text; repeat it.")] = [],  # noqa: B006
    system: Annotated[str, typer.Option(help="System message, for models with a chat template.")] = "",
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is.")] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask through the chat template (default where there is one).")
    ] = False,
    json_schema: Schema = "",
    regex: Regex = "",
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut a prompt that is too long at its start.")
    ] = False,
    plain: Plain = False,
    backend: Backend = "native",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Answer a prompt. The text streams to stdout; how it came about is told on stderr.

    [bold]Examples[/bold]

      pronghorn run "The secret number of Anna is 4821. What is the secret number of Anna?"

      pronghorn run --model org/name --temperature 0.8 --seed 7 "Write a haiku"

      cat notes.txt | pronghorn run --raw --use snapkv:budget=512

      pronghorn run --regex "[0-9]{5}" "The code is 52817. The code is"
    """
    if raw and (chat or system):
        raise RequestError("--raw sends the text as it is: leave out --chat and --system, or --raw")
    text = read_prompt(prompt)
    if not text:
        raise RequestError("the prompt is empty: give at least one token")
    methods = with_draft(with_constraint(use, json_schema, regex), draft)
    llm = open_model(model, methods, plain, backend, threads)
    given: dict[str, Any] = {
        "max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stop": tuple(stop),
        "truncate": truncate,
    }  # fmt: skip
    if chat or system or (llm.tokenizer.chat_template and not raw):
        messages = [{"role": "system", "content": system}] if system else []
        stream = llm.chat_stream([*messages, {"role": "user", "content": text}], **given)
    else:
        stream = llm.stream(text, **given)
    if as_json:
        show.as_json(record(stream.answer))
    else:
        play(llm, stream)
    llm.close()


def play(llm: LLM, stream: Stream) -> Answer:
    """Write an answer as it comes, then its closing line; returns the whole."""
    from pronghorn.cli.paint import Painter, closing

    painter = Painter(llm.tokenizer)
    try:
        for piece in stream:
            painter.write(piece)
        answer = stream.answer
    except PronghornError:
        painter.abort()
        raise
    painter.end()
    print(closing(answer, painter.drafted), file=sys.stderr)
    return answer


def record(answer: Answer) -> dict[str, Any]:
    """An answer as JSON-ready data."""
    who = answer.stats.drafters.items()
    by = {name: {"drafted": drafted, "accepted": accepted} for name, (drafted, accepted) in who}
    return {
        "text": answer.text,
        "tokens": list(answer.tokens),
        "finish": answer.finish,
        "stats": asdict(answer.stats) | {"drafters": by},
    }
