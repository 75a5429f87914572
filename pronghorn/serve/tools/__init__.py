"""Functions that an answer may call: rendering, enforcement, and calls out of the text, for every API.

plan = Plan(tokenizer, tools, choice)
ids = plan.render(messages)
... a request with `ids` and `plan.constraint()` on top ...
reader = plan.reader(stops, ids)
for delta: reader.feed(delta.text, delta.tokens); at the end: reader.end()
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pronghorn.compose import load
from pronghorn.model.tokenizer import Tokenizer
from pronghorn.serve.tools import grammar
from pronghorn.serve.tools.format import Format, find_format
from pronghorn.serve.tools.parse import Arguments, Begin, CallParser, End, Part, Text
from pronghorn.serve.tools.render import conversation
from pronghorn.serve.tools.spec import Choice, Tool, check_tools, read_tool
from pronghorn.text import TextStream

__all__ = [
    "Arguments", "Begin", "Call", "Choice", "End", "Part", "Plan", "Reader", "Text", "Tool", "conversation",
    "gather", "read_tool",
]  # fmt: skip
AUTO = Choice()


@dataclass(frozen=True)
class Plan:
    """What a request's tools come to. schema: of an answer that is no call, where one is asked for.

    Raises RequestError for tools that are too many or too large, or a choice that names none of them.
    """

    tokenizer: Tokenizer
    tools: tuple[Tool, ...] = ()
    choice: Choice = AUTO
    schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_tools(self.tools, self.choice)

    @property
    def callable(self) -> tuple[Tool, ...]:
        """Those that may be called."""
        if self.choice.mode == "none":
            return ()
        names = self.choice.names
        return tuple(tool for tool in self.tools if not names or tool.name in names)

    @property
    def format(self) -> Format:
        return find_format(self.tokenizer)

    @property
    def shown(self) -> tuple[Tool, ...]:
        """Those that the prompt describes: all of them, unless none may be called."""
        return self.tools if self.callable else ()

    def constraint(self) -> list[Any]:
        """The method that makes the answer what was asked for, if it needs one."""
        tools, many = self.callable, self.choice.many
        if self.choice.mode == "required":
            text = grammar.enforced(self.format, tools, many)
        elif tools and self.schema is not None:
            text = grammar.answer_or_calls(self.format, tools, many, self.schema)
        elif any(tool.strict for tool in tools):
            text = grammar.offered(self.format, tools, many)
        elif self.schema is not None:
            return [load("constrain", "json")(schema=json.dumps(self.schema))]
        else:
            return []
        return [load("constrain", "lark")(grammar=text)]

    def reader(self, stops: Sequence[str], before: Sequence[int]) -> Reader:
        """For one answer after the ids `before`, ended by the texts `stops`."""
        return Reader(self, stops, before)


class Reader:
    """Text and calls of one answer, as its deltas come."""

    def __init__(self, plan: Plan, stops: Sequence[str], before: Sequence[int]) -> None:
        form = plan.format
        names = {tool.name for tool in plan.callable}
        self._parser = CallParser(form, names, plan.choice.many, form.call_id) if names else None
        # Where markers are special tokens, they are not in a delta's text.
        shown = form.marks if names else {}
        self._text = TextStream(plan.tokenizer, stops, before, shown) if shown else None

    @property
    def calls(self) -> int:
        """Calls begun so far."""
        return self._parser.n_calls if self._parser else 0

    @property
    def done(self) -> bool:
        """Nothing more will come out: the only call that may be made is complete."""
        return self._parser is not None and self._parser.done

    def feed(self, text: str, tokens: Sequence[int]) -> list[Part]:
        """What became certain by one more delta."""
        if self._text is not None:
            text = "".join(map(self._text.push, tokens))
        if self._parser is None:
            return [Text(text)] if text else []
        return self._parser.push(text)

    def end(self) -> list[Part]:
        """The rest."""
        if self._parser is None:
            return []
        rest = self._parser.push(self._text.flush()) if self._text is not None else []
        return rest + self._parser.flush()

    def finish(self, reason: str) -> str:
        """The finish reason of an answer that ended with `reason`, in OpenAI's words."""
        return "tool_calls" if self.calls and (reason == "stop" or self.done) else reason


@dataclass
class Call:
    """A whole call."""

    id: str
    name: str
    arguments: str = ""


def gather(parts: Sequence[Part]) -> tuple[str, list[Call]]:
    """Text and calls out of all parts of an answer."""
    text: list[str] = []
    calls: list[Call] = []
    for part in parts:
        if isinstance(part, Text):
            text.append(part.text)
        elif isinstance(part, Begin):
            calls.append(Call(part.id, part.name))
        elif isinstance(part, Arguments):
            calls[part.index].arguments += part.text
    return "".join(text), calls
