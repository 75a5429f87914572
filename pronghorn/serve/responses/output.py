"""The output items of a response as they grow, and the events that tell of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

from pronghorn.serve.tools import Arguments, Begin, End, Part, Text

Event = dict[str, Any]


class Output:
    """`feed` parts of an answer, `close` once; both return events. `items` are the output so far."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._words: list[str] = []  # of the open item: its text or arguments
        self._open = False

    def feed(self, parts: Iterable[Part]) -> list[Event]:
        return [event for part in parts for event in self._one(part)]

    def close(self, status: str) -> list[Event]:
        """End what is open; an answer without anything is an empty message. status: "completed", or
        "incomplete" for an item that the answer's end cut."""
        events = [] if self.items else self._message()
        return [*events, *self._end(status)]

    def _one(self, part: Part) -> list[Event]:
        if isinstance(part, Text):
            events = [] if self._open and self._item["type"] == "message" else self._message()
            self._words.append(part.text)
            place = {"content_index": 0, "delta": part.text, "logprobs": []}
            return [*events, self._event("response.output_text.delta", **place)]
        if isinstance(part, Begin):
            events = self._end("completed")
            item = {
                "type": "function_call", "id": _id("fc"), "call_id": part.id, "name": part.name,
                "arguments": "", "status": "in_progress",
            }  # fmt: skip
            return [*events, self._add(item)]
        if isinstance(part, Arguments):
            self._words.append(part.text)
            return [self._event("response.function_call_arguments.delta", delta=part.text)]
        assert isinstance(part, End)
        return []  # closed by what follows: only then is it known whether the answer was cut inside

    @property
    def _item(self) -> dict[str, Any]:
        return self.items[-1]

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self._item["id"], "output_index": len(self.items) - 1, **fields}

    def _add(self, item: dict[str, Any]) -> Event:
        self.items.append(item)
        self._words, self._open = [], True
        return {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": dict(item)}

    def _message(self) -> list[Event]:
        """Begin a message."""
        events = self._end("completed")
        item = {
            "type": "message",
            "id": _id("msg"),
            "role": "assistant",
            "content": [],
            "status": "in_progress",
        }
        events.append(self._add(item))
        events.append(self._event("response.content_part.added", content_index=0, part=_text("")))
        return events

    def _end(self, status: str) -> list[Event]:
        """End the open item, if there is one."""
        if not self._open:
            return []
        self._open = False
        item, words = self._item, "".join(self._words)
        item["status"] = status
        if item["type"] == "message":
            item["content"] = [_text(words)]
            events = [
                self._event("response.output_text.done", content_index=0, text=words, logprobs=[]),
                self._event("response.content_part.done", content_index=0, part=_text(words)),
            ]
        else:
            item["arguments"] = words
            done = {"name": item["name"], "arguments": words}
            events = [self._event("response.function_call_arguments.done", **done)]
        at = len(self.items) - 1
        return [*events, {"type": "response.output_item.done", "output_index": at, "item": dict(item)}]


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"
