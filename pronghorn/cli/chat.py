"""`pronghorn chat`: a conversation in the terminal, or one message a line from a pipe.

Every turn sends the whole conversation; the reuse method finds the rows of earlier turns, so only what
is new runs. Nothing is ever cut from the conversation silently: when it fills the context, chat says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pronghorn.cli.ending import printable
from pronghorn.cli.options import (
    MAX_INPUT,
    MODEL,
    Backend,
    Draft,
    Model,
    Plain,
    Regex,
    Schema,
    Threads,
    Use,
    decoded,
    open_model,
    with_constraint,
    with_draft,
)
from pronghorn.errors import PronghornError, RequestError

if TYPE_CHECKING:
    from pronghorn.llm import LLM, Answer

HELP = """\
/system TEXT  set the system message (nothing: take it away) and start again
/reset        start a new conversation
/save FILE    write the conversation as JSON
/stats        tokens so far, and how much of the context is used
/quit         leave, as Ctrl-D does
Ctrl-C stops an answer."""


def chat(
    model: Model = MODEL,
    use: Use = [],  # noqa: B006  (Typer copies it)
    draft: Draft = "",
    system: Annotated[str, typer.Option(help="System message.")] = "",
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="New tokens a turn, at most.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    json_schema: Schema = "",
    regex: Regex = "",
    plain: Plain = False,
    backend: Backend = "native",
    threads: Threads = 0,
) -> int:
    """Talk with a model. Piped input is one message a line.

    [bold]Examples[/bold]

      pronghorn chat

      pronghorn chat --model org/name --system "Answer briefly." --temperature 0.7

      printf 'Hello\\nWhat did I say?\\n' | pronghorn chat
    """
    methods = with_draft(with_constraint(use, json_schema, regex), draft)
    llm = open_model(model, methods, plain, backend, threads)
    if not llm.tokenizer.chat_template:
        raise RequestError(
            "this checkpoint has no chat template; use `pronghorn run --raw`, or a model trained for chat"
        )
    talk = Talk(llm, system, {"max_tokens": max_tokens, "temperature": temperature, "seed": seed})
    try:
        if sys.stdin.isatty() and sys.stdout.isatty():
            note(f"{model} · /help lists commands, Ctrl-D leaves")
            _converse(talk, _ask())
        else:
            _converse(talk, _lines())
    finally:
        llm.close()
    return 2 if talk.failed and not sys.stdin.isatty() else 0


def note(text: str) -> None:
    """A line about the conversation, on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


class Talk:
    """A conversation and what it cost. failed: a message could not be answered."""

    def __init__(self, llm: LLM, system: str, options: dict[str, Any]) -> None:
        self.llm, self.options = llm, options
        self.system = system
        self.turns: list[dict[str, str]] = []
        self.answers: list[Answer] = []
        self.failed = False

    @property
    def messages(self) -> list[dict[str, str]]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    @property
    def context(self) -> int:
        return int(self.llm.engine.bound.context)

    @property
    def used(self) -> int:
        """Tokens of the conversation so far."""
        return len(self.llm.tokenizer.chat(self.messages, add_generation_prompt=False)) if self.turns else 0

    def reset(self) -> None:
        self.turns, self.answers = [], []

    def say(self, text: str) -> None:
        """Answer one message, as it streams. What cannot be answered leaves the conversation as it was."""
        self.turns.append({"role": "user", "content": text})
        try:
            self._answer()
        except PronghornError as error:
            self.turns.pop()
            self.failed = True
            note(f"pronghorn: {error}")

    def _answer(self) -> None:
        from pronghorn.cli.paint import Painter, closing

        self._check_room()
        painter = Painter(self.llm.tokenizer)
        text = ""
        with stoppable() as stop:
            stream = self.llm.chat_stream(self.messages, **self.options)
            try:
                for piece in stream:
                    text += piece.text
                    painter.write(piece)
                    if stop():
                        stream.close()
                        break
                else:
                    self.answers.append(stream.answer)
            except PronghornError:
                painter.abort()
                raise
        painter.end()
        self.turns.append({"role": "assistant", "content": text})
        if stop():
            note("stopped; what was said so far stays in the conversation")
            return
        last = self.answers[-1]
        print(closing(last, painter.drafted), file=sys.stderr, flush=True)
        if last.finish == "length" and last.stats.prompt_tokens + last.stats.new_tokens >= self.context:
            note(f"the context of {self.context:,} tokens is full: /reset starts a new conversation")

    def _check_room(self) -> None:
        n = len(self.llm.tokenizer.chat(self.messages))
        if n > self.context - 1 and not self.llm.engine.methods.moves:
            raise RequestError(
                f"with this message the conversation has {n:,} tokens and the model's context is "
                f"{self.context:,}: /reset starts a new one, /save FILE keeps this one"
            )

    def stats(self) -> str:
        from pronghorn.cli.paint import drafts

        s = [a.stats for a in self.answers]
        prompt, new = sum(x.prompt_tokens for x in s), sum(x.new_tokens for x in s)
        reused, steps = sum(x.reused_tokens for x in s), sum(x.steps for x in s)
        seconds, length = sum(x.seconds for x in s), new / steps if steps else 0.0
        return (
            f"{len(s)} {'answer' if len(s) == 1 else 'answers'}, {new:,} tokens in {seconds:.1f} s, "
            f"{length:.2f} a step · {drafts(s)} · "
            f"{reused:,} of {prompt:,} prompt tokens reused · context {self.used:,} of {self.context:,}"
        )

    def save(self, name: str) -> None:
        """Raises RequestError; never replaces a file."""
        path = Path(name).expanduser()
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(self.messages, file, ensure_ascii=False, indent=1)
        except FileExistsError:
            raise RequestError(f"{path} exists already: name another file") from None
        except OSError as error:
            raise RequestError(f"cannot write {path}: {error.strerror or error}") from None


def _converse(talk: Talk, messages: Iterator[str]) -> None:
    """Answer messages and follow commands until there are no more."""
    for text in messages:
        if not text.strip():
            continue
        if not text.startswith("/"):
            talk.say(text)
            continue
        name, _, rest = text.strip().partition(" ")
        if name in ("/quit", "/exit"):
            return
        try:
            _command(talk, name, rest.strip())
        except PronghornError as error:
            talk.failed = True
            note(f"pronghorn: {error}")


def _command(talk: Talk, name: str, rest: str) -> None:
    if name == "/help":
        note(HELP)
    elif name == "/reset":
        talk.reset()
        note("a new conversation")
    elif name == "/system":
        talk.system = rest
        talk.reset()
        note("a new conversation" + (" with this system message" if rest else " without a system message"))
    elif name == "/stats":
        note(talk.stats())
    elif name == "/save" and rest:
        talk.save(rest)
        note(f"saved {len(talk.messages)} messages")
    elif name == "/save":
        raise RequestError("/save needs a file's name")
    else:
        raise RequestError(f"no command {name}: /help lists them")


def _lines() -> Iterator[str]:
    """Messages from a pipe."""
    while line := sys.stdin.buffer.readline(MAX_INPUT + 1):
        yield decoded(line, "a message").rstrip("\r\n")


def _ask() -> Iterator[str]:
    """Messages typed in a terminal, with a history that is kept between runs."""
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession(history=_history())
    with contextlib.suppress(EOFError):
        while True:
            text = ""
            with contextlib.suppress(KeyboardInterrupt):  # the line is thrown away
                text = session.prompt("> ")
            yield text


def _history() -> Any:
    """The history file, or one in memory where that cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Kept(FileHistory):
        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):  # a full disk must not end the conversation
                super().store_string(string)

    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = home / "pronghorn" / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError as error:
        note(f"the history will not be kept: cannot write {path}: {error.strerror or error}")
        return InMemoryHistory()
    return Kept(str(path))


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C only makes the yielded function true: a step is never cut in half. A
    second one is Ctrl-C as ever."""
    asked = []

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
