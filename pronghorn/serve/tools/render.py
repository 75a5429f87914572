"""Conversations with tools as prompt ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pronghorn.errors import RequestError
from pronghorn.model.tokenizer import Tokenizer
from pronghorn.serve.tools.format import takes_tools
from pronghorn.serve.tools.spec import Tool

_HOW = (
    "You may call these functions. Each is described by one line of JSON:\n{tools}\n"
    "To call one, answer with its name and arguments as JSON between these marks:\n"
    '<tool_call>\n{{"name": "NAME", "arguments": {{...}}}}\n</tool_call>'
)


def conversation(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] = ()
) -> list[int]:
    """Ids of messages in OpenAI's form, tool calls and results included, ready for the answer.

    A template that knows no tools gets them as text: the functions in a system message, calls and results
    in the words of the model and of the user. Raises as `Tokenizer.chat`.
    """
    if takes_tools(tokenizer.chat_template):
        own = [_for_template(message) for message in messages]
        return tokenizer.chat(own, tools=[tool.described() for tool in tools])
    plain = [_as_text(message) for message in messages]
    if not tools:
        return tokenizer.chat(plain)
    lines = "\n".join(json.dumps(tool.described()["function"], ensure_ascii=False) for tool in tools)
    how = _HOW.format(tools=lines)
    try:
        return tokenizer.chat(_led(plain, "system", how))
    except RequestError:  # some templates refuse a system message
        return tokenizer.chat(_led(plain, "user", how))


def _led(messages: list[dict[str, Any]], role: str, text: str) -> list[dict[str, Any]]:
    """`messages` with `text` in front of the first one if that has this role, else as one of its own."""
    if messages and messages[0]["role"] == role and isinstance(messages[0]["content"], str):
        own = messages[0]["content"]
        joined = f"{own}\n\n{text}" if role == "system" else f"{text}\n\n{own}"
        return [{**messages[0], "content": joined}, *messages[1:]]
    return [{"role": role, "content": text}, *messages]


def _for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: arguments as data, no null content, text parts joined."""
    out = {**message, "content": _content(message)}
    if message.get("tool_calls"):
        out["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _data(call["function"].get("arguments"))}}
            for call in message["tool_calls"]
        ]
    return out


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    content = _content(message)
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = []
    for call in message.get("tool_calls") or ():
        function = call["function"]
        data = {"name": function["name"], "arguments": _data(function.get("arguments"))}
        calls.append(f"<tool_call>\n{json.dumps(data, ensure_ascii=False)}\n</tool_call>")
    if calls:
        content = "\n".join(([content] if content else []) + calls)
    return {"role": message["role"], "content": content}


def _content(message: Mapping[str, Any]) -> Any:
    """The text of a message; parts that are all text are joined."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    return content


def _data(arguments: object) -> Any:
    """Arguments as data where they are JSON, else as they are."""
    if isinstance(arguments, str):
        try:
            return json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return arguments
    return arguments if arguments is not None else {}
