"""Options that several commands share, and what they make."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pronghorn.errors import MethodError, RequestError

if TYPE_CHECKING:
    from pronghorn.llm import LLM

MAX_INPUT = 64 << 20  # bytes read from a pipe or a file of prompts

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="MODEL",
        help="Bundled model, folder, .gguf or .bin file, or hub name org/name.",
    ),
]  # fmt: skip
Use = Annotated[
    list[str],
    typer.Option(
        "--use", "-u", metavar="METHOD[:KEY=VALUE,...]",
        help="A method to run with; repeat it. `pronghorn methods` lists them.",
    ),
]  # fmt: skip
Draft = Annotated[
    str,
    typer.Option(
        "--draft", metavar="DRAFTER[:KEY=VALUE,...]",
        help="Who drafts: auto picks what pays (the default), one of `pronghorn methods`, or none, which "
        "leaves the tokens that a grammar or schema forces.",
    ),
]  # fmt: skip
Plain = Annotated[
    bool, typer.Option("--plain", help="Without the default drafter and reuse of stored prompts.")
]
Backend = Annotated[str, typer.Option(metavar="NAME", help="native, ref, ref64, torch or cuda.")]
Threads = Annotated[int, typer.Option(min=0, max=4096, help="Threads; 0 for all cores.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for scripts.")]
Schema = Annotated[
    str,
    typer.Option(metavar="SCHEMA", help="Answer with JSON of this schema: a file's name or its text."),
]
Regex = Annotated[str, typer.Option(metavar="PATTERN", help="Answer with text that matches PATTERN.")]

MODEL = "pronghorn-tiny"
PLAIN = ("match", "fcfs")  # the defaults that remain: how tokens are chosen and who runs


def open_model(
    model: str, use: list[Any], plain: bool = False, backend: str = "native", threads: int = 0
) -> LLM:
    """Load a model with the methods asked for. Raises `PronghornError`."""
    from pronghorn.llm import DEFAULT_USE, LLM

    return LLM(model, use, backend, threads, defaults=PLAIN if plain else DEFAULT_USE)


def with_draft(use: list[Any], draft: str) -> list[Any]:
    """`use` and the drafter that --draft stands for; "" leaves it to the defaults."""
    from pronghorn.nulls import NoDraft

    if not draft:
        return use
    return [*use, NoDraft() if draft == "none" else f"draft.{draft.removeprefix('draft.')}"]


def with_constraint(use: list[str], schema: str, regex: str) -> list[Any]:
    """`use` and the constraint that --json-schema or --regex stands for. Raises `PronghornError`."""
    from pronghorn.compose import load

    if schema and regex:
        raise MethodError("--json-schema and --regex are both given: choose one")
    if schema:
        is_text = schema.lstrip()[:1] in ("{", "[") or schema.strip() in ("true", "false")
        text = schema if is_text else read_text(Path(schema))
        return [*use, load("constrain", "json")(schema=text)]
    return [*use, load("constrain", "regex")(pattern=regex)] if regex else [*use]


def read_prompt(argument: str) -> str:
    """The prompt itself, or what is piped in when it is absent or "-". Raises `RequestError`."""
    if argument not in ("", "-"):
        return argument
    if argument == "" and sys.stdin.isatty():
        raise RequestError('the prompt is empty: give one, as in pronghorn run "Hello"')
    return decoded(sys.stdin.buffer.read(MAX_INPUT + 1), "the input").removesuffix("\n")


def read_text(path: Path) -> str:
    """Text of a file that the user named. Raises `RequestError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INPUT + 1)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from None
    return decoded(data, str(path))


def decoded(data: bytes, what: str) -> str:
    if len(data) > MAX_INPUT:
        raise RequestError(f"{what} is larger than {MAX_INPUT >> 20} MiB: give less text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{what} is not UTF-8 text (byte {error.start}): convert it") from None


def weight_first(spec: str) -> str:
    """Of a name that is a format of weights and something else too, the format is meant here."""
    from pronghorn.compose import names

    name = spec.partition(":")[0]
    return f"weight.{spec}" if name in names()["weight"] else spec
