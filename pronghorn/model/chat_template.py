"""Chat templates: the Jinja program inside a checkpoint that writes a conversation as text.

It is untrusted code, run in the guarded sandbox of `template_guard`: a template that would loop, blow up
or reach for Python's internals ends with a CheckpointError within about two seconds.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any, NoReturn

from pronghorn.errors import CheckpointError, RequestError

_N_SOURCE_MAX = 1 << 16  # characters of a template: the longest in use are about 20,000
_N_MESSAGES_MAX = 10_000
_N_CONTENT_MAX = 4 << 20  # characters of all messages together
_N_TOOLS_MAX = 256
_N_TOOL_CHARS_MAX = 1 << 19  # of all tools together
_NAME = "<chat template>"


class _RefusedError(Exception):
    """The template itself refuses the conversation (`raise_exception`)."""


def _raise_exception(message: object) -> NoReturn:
    raise _RefusedError(str(message)[:500])


class ChatTemplate:
    """One compiled template. Rendering changes shared state: one rendering at a time."""

    def __init__(self, source: str, bos_token: str, eos_token: str) -> None:
        """Compile. Raises CheckpointError for a template that is too long or malformed."""
        from jinja2 import TemplateError

        from pronghorn.model.template_guard import GuardedEnvironment

        if len(source) > _N_SOURCE_MAX:
            raise CheckpointError(
                f"the chat template has {len(source)} characters, at most {_N_SOURCE_MAX} are read; "
                "use a plain prompt"
            )
        self._environment = GuardedEnvironment()
        self._environment.globals["raise_exception"] = _raise_exception
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            code = self._environment.compile(source, None, _NAME)
            self._template = self._environment.template_class.from_code(
                self._environment, code, self._environment.globals
            )
        except TemplateError as error:
            line = getattr(error, "lineno", 1)
            raise CheckpointError(
                f"the chat template is malformed at line {line}: {error}; use a plain prompt"
            ) from None
        except (SyntaxError, RecursionError, MemoryError, ValueError, AssertionError) as error:
            raise CheckpointError(
                f"the chat template cannot be compiled ({error}); use a plain prompt"
            ) from None

    def render(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[dict[str, Any]] = (),
    ) -> str:
        """Text of the conversation, with the tools that it may use.

        Raises RequestError (malformed messages or tools, or the template refuses them) and
        CheckpointError (the template fails, or spends more than it may), naming the template's line.
        """
        from jinja2 import TemplateError

        from pronghorn.model.template_guard import Budget

        check_messages(messages)
        check_tools(tools)
        self._environment.budget = Budget()
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=list(tools) or None,
                documents=None,
                **self._tokens,
            )
        except _RefusedError as error:
            raise RequestError(
                f"the chat template refuses these messages at line {_line(error)}: {error}"
            ) from None
        except (TemplateError, ArithmeticError, TypeError, ValueError, LookupError) as error:
            raise self._broken(error) from None
        except (AttributeError, RecursionError, MemoryError, AssertionError) as error:
            raise self._broken(error) from None

    def parts(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        markup: list[str],
        tools: Sequence[dict[str, Any]] = (),
    ) -> list[tuple[str, bool]]:
        """What `render` gives, in parts: (text, whether it is the template's own).

        Where a text of the caller's holds a string of `markup` (special tokens), it must not speak for the
        template: contents of messages, and whatever else holds markup, come as parts of their own. To find
        them, the conversation is rendered again with a random word for each. A template that does more to
        texts than trim them or write them as JSON cannot be taken apart so; then all is one part.
        Raises as `render`, and RequestError for markup in a key.
        """
        text = self.render(messages, add_generation_prompt, tools)
        marked = _Marked(markup)
        marked_tools = [marked.inside(tool) for tool in tools]
        marked_messages = [
            {key: marked.word(value) if key == "content" and isinstance(value, str) else marked.inside(value)
             for key, value in message.items()}
            for message in messages
        ]  # fmt: skip
        if not marked.found:
            return [(text, True)]
        try:
            again = self.render(marked_messages, add_generation_prompt, marked_tools)
        except (RequestError, CheckpointError):  # the template looks into texts
            return [(text, True)]
        pieces = marked.pattern.split(again)
        parts, at = [(pieces[0], True)], len(pieces[0])
        whole = text.startswith(pieces[0])
        for number, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            spellings = _spellings(marked.texts[int(number)])
            found = [each for each in spellings if text.startswith(each + piece, at)]
            if not found:
                return [(text, True)]
            parts += [(found[0], False), (piece, True)]
            at += len(found[0]) + len(piece)
        return parts if whole and at == len(text) else [(text, True)]

    def _broken(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"the chat template fails at line {_line(error)}: {str(error)[:500]}; use a plain prompt"
        )


class _Marked:
    """Texts of a conversation replaced by random words, each found again by its number."""

    def __init__(self, markup: list[str]) -> None:
        self._word = f"content{secrets.token_hex(12)}n"
        self._markup = markup
        self.pattern = re.compile(rf"{self._word}(\d+)n")
        self.texts: list[str] = []
        self.found = False  # a text holds markup

    def word(self, text: str) -> str:
        """The word that stands for `text`; blank texts stay, templates ask for them."""
        if not text.strip():
            return text
        self.found = self.found or self._holds(text)
        self.texts.append(text)
        return f"{self._word}{len(self.texts) - 1}n"

    def inside(self, value: Any) -> Any:
        """A copy of plain data with a word for each text that holds markup."""
        if isinstance(value, str):
            return self.word(value) if self._holds(value) else value
        if isinstance(value, dict):
            for key in value:
                if self._holds(key):
                    raise RequestError(f"the name {key!r:.80} holds markup of a special token; change it")
            return {key: self.inside(item) for key, item in value.items()}
        return [self.inside(item) for item in value] if isinstance(value, list) else value

    def _holds(self, text: str) -> bool:
        return any(mark in text for mark in self._markup)


def _spellings(text: str) -> list[str]:
    """How a template may write a text of the caller's: as it is, trimmed, inside JSON."""
    wide, ascii_ = (json.dumps(text, ensure_ascii=each)[1:-1] for each in (False, True))
    return [text, text.strip(), wide, ascii_]


def check_tools(tools: Sequence[dict[str, Any]]) -> None:
    """Refuse tools that are not {"type": "function", "function": {"name": str, ...}} of plain JSON data.

    Raises RequestError naming the tool.
    """
    if len(tools) > _N_TOOLS_MAX:
        raise RequestError(f"more than {_N_TOOLS_MAX} tools; offer fewer")
    n_left = _N_TOOL_CHARS_MAX
    for at, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RequestError(f'tool {at} must be {{"type": "function", "function": {{"name": ...}}}}')
        n_left -= _n_plain(tool, f"tool {at}", 0)
        if n_left < 0:
            raise RequestError(f"the tools hold more than {_N_TOOL_CHARS_MAX} characters; shorten them")


def check_messages(messages: list[dict[str, Any]]) -> None:
    """Refuse a conversation that is not a list of {"role": str, "content": str or parts}.

    Parts are dicts with a `type`, as in the OpenAI API. Other keys (names, tool calls) may hold any plain
    data. Raises RequestError naming the message.
    """
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list of at least one message")
    if len(messages) > _N_MESSAGES_MAX:
        raise RequestError(f"more than {_N_MESSAGES_MAX} messages; shorten the conversation")
    n_left = _N_CONTENT_MAX
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(f"message {at} must be a dict with a text `role`")
        if not message["role"]:
            raise RequestError(f"message {at} has an empty role; use system, user or assistant")
        content = message.get("content", "tool_calls" if "tool_calls" in message else None)
        if content is None and "tool_calls" in message:
            content = ""
        if isinstance(content, list):
            if not all(isinstance(p, dict) and isinstance(p.get("type"), str) for p in content):
                raise RequestError(f"a part of message {at} must be a dict with a text `type`")
        elif not isinstance(content, str):
            raise RequestError(f"message {at} must have `content`: text or a list of parts")
        n_left -= _n_plain(message, f"message {at}", 0)
        if n_left < 0:
            raise RequestError(
                f"the messages hold more than {_N_CONTENT_MAX} characters; shorten the conversation"
            )


def _n_plain(value: object, what: str, depth: int) -> int:
    """Characters in plain data; each element counts for 64. Raises RequestError for anything else."""
    if isinstance(value, str):
        return 64 + len(value)
    if value is None or isinstance(value, (bool, int, float)):
        return 64
    if depth < 32 and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return 64 + sum(
            _n_plain(key, what, depth + 1) + _n_plain(item, what, depth + 1) for key, item in value.items()
        )
    if depth < 32 and isinstance(value, list):
        return 64 + sum(_n_plain(item, what, depth + 1) for item in value)
    raise RequestError(f"{what} holds a {type(value).__name__}, or nests deeper than 32; use plain JSON data")


def _line(error: BaseException) -> int:
    """The template's line where `error` arose, 0 when it is not known."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _NAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
