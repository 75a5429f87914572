"""What becomes of an answer's text in a chat message.

Without tools it is the content. With tools, text turns into calls as it streams; then another `Writer` is
at work.
"""

from __future__ import annotations

from typing import Any, Protocol


class Writer(Protocol):
    """Writes one choice of a chat completion."""

    def feed(self, text: str) -> list[dict[str, Any]]:
        """New text; the fields of chunks' `delta` that are certain by now."""
        ...

    def end(self, finish: str) -> tuple[list[dict[str, Any]], str]:
        """The rest, and the choice's finish_reason."""
        ...

    def message(self, text: str, finish: str) -> tuple[dict[str, Any], str]:
        """The message of a whole answer, without its role, and the choice's finish_reason."""
        ...


class Plain:
    """Text is content."""

    def feed(self, text: str) -> list[dict[str, Any]]:
        return [{"content": text}] if text else []

    def end(self, finish: str) -> tuple[list[dict[str, Any]], str]:
        return [], finish

    def message(self, text: str, finish: str) -> tuple[dict[str, Any], str]:
        return {"content": text}, finish
