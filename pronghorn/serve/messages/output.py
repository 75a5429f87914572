"""The content blocks of a message as they grow, and the events that tell of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pronghorn.serve.tools import Arguments, Begin, Part, Text

Event = dict[str, Any]


class Blocks:
    """`feed` parts of an answer, `close` once; both return events. `blocks` are the content so far."""

    def __init__(self) -> None:
        self.blocks: list[dict[str, Any]] = []
        self._words: list[str] = []  # of the open block: its text or input
        self._open = False

    def feed(self, parts: Iterable[Part]) -> list[Event]:
        return [event for part in parts for event in self._one(part)]

    def close(self) -> list[Event]:
        """End what is open; an answer without anything is an empty text."""
        events = [] if self.blocks else self._start({"type": "text", "text": ""})
        return [*events, *self._stop()]

    def _one(self, part: Part) -> list[Event]:
        if isinstance(part, Text):
            is_text = self._open and self.blocks[-1]["type"] == "text"
            events = [] if is_text else self._start({"type": "text", "text": ""})
            return [*events, self._delta({"type": "text_delta", "text": part.text}, part.text)]
        if isinstance(part, Begin):
            return self._start({"type": "tool_use", "id": part.id, "name": part.name, "input": {}})
        if isinstance(part, Arguments):
            return [self._delta({"type": "input_json_delta", "partial_json": part.text}, part.text)]
        return self._stop()

    def _start(self, block: dict[str, Any]) -> list[Event]:
        events = self._stop()
        self.blocks.append(block)
        self._words, self._open = [], True
        at = len(self.blocks) - 1
        return [*events, {"type": "content_block_start", "index": at, "content_block": dict(block)}]

    def _delta(self, delta: dict[str, Any], words: str) -> Event:
        self._words.append(words)
        return {"type": "content_block_delta", "index": len(self.blocks) - 1, "delta": delta}

    def _stop(self) -> list[Event]:
        if not self._open:
            return []
        self._open = False
        block, words = self.blocks[-1], "".join(self._words)
        if block["type"] == "text":
            block["text"] = words
        else:
            block["input"] = _data(words)
        return [{"type": "content_block_stop", "index": len(self.blocks) - 1}]


def _data(words: str) -> dict[str, Any]:
    """Arguments as data; {} for what is no JSON object, as where the answer was cut inside."""
    try:
        data = json.loads(words)
    except (ValueError, RecursionError):
        data = None
    return data if isinstance(data, dict) else {}
