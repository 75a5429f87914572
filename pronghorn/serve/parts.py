"""What becomes of an answer's text in a chat message.

Without tools it is the content. With tools, text turns into calls as it streams; then another `Writer` is
at work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pronghorn.serve.tools import Arguments, Begin, End, Part, Reader, Text, gather


class Writer(Protocol):
    """Writes one choice of a chat completion."""

    def feed(self, text: str, tokens: Sequence[int]) -> list[dict[str, Any]]:
        """New text and its tokens; the fields of chunks' `delta` that are certain by now."""
        ...

    def end(self, finish: str) -> tuple[list[dict[str, Any]], str]:
        """The rest, and the choice's finish_reason."""
        ...

    def message(self, text: str, tokens: Sequence[int], finish: str) -> tuple[dict[str, Any], str]:
        """The message of a whole answer, without its role, and the choice's finish_reason."""
        ...


class Plain:
    """Text is content."""

    def feed(self, text: str, tokens: Sequence[int]) -> list[dict[str, Any]]:
        return [{"content": text}] if text else []

    def end(self, finish: str) -> tuple[list[dict[str, Any]], str]:
        return [], finish

    def message(self, text: str, tokens: Sequence[int], finish: str) -> tuple[dict[str, Any], str]:
        return {"content": text}, finish


class Calls:
    """Text is content, and calls of tools are calls."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def feed(self, text: str, tokens: Sequence[int]) -> list[dict[str, Any]]:
        return [_delta(part) for part in self._reader.feed(text, tokens) if not isinstance(part, End)]

    def end(self, finish: str) -> tuple[list[dict[str, Any]], str]:
        rest = [_delta(part) for part in self._reader.end() if not isinstance(part, End)]
        return rest, self._reader.finish(finish)

    def message(self, text: str, tokens: Sequence[int], finish: str) -> tuple[dict[str, Any], str]:
        content, calls = gather([*self._reader.feed(text, tokens), *self._reader.end()])
        if not calls:
            return {"content": content}, finish
        made = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
        return {"content": content or None, "tool_calls": made}, self._reader.finish(finish)


def _delta(part: Part) -> dict[str, Any]:
    """One part as a chunk's `delta`."""
    if isinstance(part, Text):
        return {"content": part.text}
    if isinstance(part, Begin):
        function = {"name": part.name, "arguments": ""}
        call = {"index": part.index, "id": part.id, "type": "function", "function": function}
    else:
        assert isinstance(part, Arguments)
        call = {"index": part.index, "function": {"arguments": part.text}}
    return {"tool_calls": [call]}
