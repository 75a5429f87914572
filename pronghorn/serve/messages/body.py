"""Bodies of /v1/messages, and their blocks as messages of the chat API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from pronghorn.errors import RequestError
from pronghorn.serve.fields import MOST, Body, Extension, Name, Sampling, Text
from pronghorn.serve.tools import Choice, Tool, read_tool
from pronghorn.serve.tools.spec import N_TOOLS_MAX

Stop = Annotated[str, Field(max_length=4096)]


class TextBlock(Body):
    type: Literal["text"]
    text: Text


class ToolUse(Body):
    type: Literal["tool_use"]
    id: Name
    name: Name
    input: dict[str, Any] = Field({})


class ToolResult(Body):
    type: Literal["tool_result"]
    tool_use_id: Name
    content: Text | list[TextBlock] | None = None
    is_error: bool | None = None


class Thinking(Body):
    """Passed over: what was thought before is not shown to the model again."""

    type: Literal["thinking", "redacted_thinking"]


Block = Annotated[TextBlock | ToolUse | ToolResult | Thinking, Field(discriminator="type")]


class Message(Body):
    role: Literal["user", "assistant", "system"]
    content: Text | list[Block]


class MessageTool(Body):
    type: Literal["custom"] | None = None
    name: Name
    description: Text | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class MessageToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class Metadata(Body):
    user_id: Name | None = None


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    format: OutputFormat | None = None


class CountBody(Body):
    """What a prompt is made of."""

    model: Name
    messages: list[Message] = Field(min_length=1, max_length=10_000)
    system: Text | list[TextBlock] | None = None
    tools: list[MessageTool] | None = Field(None, max_length=N_TOOLS_MAX)
    tool_choice: MessageToolChoice | None = None


class MessagesBody(CountBody):
    max_tokens: int = Field(ge=1, le=MOST)
    stop_sequences: list[Stop] | None = Field(None, max_length=64)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MOST)
    stream: bool | None = None
    metadata: Metadata | None = None
    output_config: OutputConfig | None = None
    pronghorn: Extension | None = None

    @field_validator("stop_sequences")
    @classmethod
    def _some(cls, stops: list[str] | None) -> list[str] | None:
        if stops and not all(stops):
            raise ValueError("an empty text ends every answer: leave it out")
        return stops

    @property
    def user(self) -> str:
        return (self.metadata.user_id if self.metadata else None) or ""

    @property
    def sampling(self) -> Sampling:
        """The fields that every endpoint has."""
        own = ("model", "temperature", "top_p", "top_k", "user", "pronghorn")
        fields = {name: getattr(self, name) for name in own}
        return Sampling.model_validate(fields | {"stop": self.stop_sequences})

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """Of the answer's text, None for any text."""
        form = self.output_config.format if self.output_config else None
        return form.schema_ if form else None


def read_tools(tools: Sequence[MessageTool]) -> tuple[Tool, ...]:
    """Raises RequestError."""
    return tuple(read_tool(at, t.name, t.description, t.input_schema, t.strict) for at, t in enumerate(tools))


def read_choice(choice: MessageToolChoice | None) -> Choice:
    """Raises RequestError where a tool is asked for without its name."""
    if choice is None:
        return Choice()
    many = not choice.disable_parallel_tool_use
    if choice.type == "tool":
        if not choice.name:
            raise RequestError("tool_choice of type 'tool' needs the tool's `name`")
        return Choice("required", (choice.name,), False)
    return Choice({"auto": "auto", "any": "required", "none": "none"}[choice.type], (), many)  # type: ignore[arg-type]


def as_messages(body: CountBody) -> tuple[list[dict[str, Any]], str]:
    """Messages of the chat API, and the beginning of the answer that the last one gives.

    Raises RequestError for blocks in the wrong place.
    """
    out: list[dict[str, Any]] = []
    if body.system:
        out.append({"role": "system", "content": _words(body.system)})
    for at, message in enumerate(body.messages):
        if isinstance(message.content, str):
            out.append({"role": message.role, "content": message.content})
        elif message.role == "assistant":
            out.append(_said(message.content, at))
        else:
            out += _told(message.role, message.content, at)
    last = body.messages[-1]
    if last.role != "assistant" or "tool_calls" in out[-1]:
        return out, ""
    begun: str = out.pop()["content"]
    if not out or out[-1]["role"] == "system":
        raise RequestError("messages: the conversation needs a message of the user's")
    return out, begun


def _said(blocks: list[Block], at: int) -> dict[str, Any]:
    """A message of the assistant's."""
    words, calls = [], []
    for block in blocks:
        if isinstance(block, TextBlock):
            words.append(block.text)
        elif isinstance(block, ToolUse):
            function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif isinstance(block, ToolResult):
            raise RequestError(f"messages.{at}: a tool_result belongs to the user's message")
    out: dict[str, Any] = {"role": "assistant", "content": "".join(words)}
    return out | ({"tool_calls": calls} if calls else {})


def _told(role: str, blocks: list[Block], at: int) -> list[dict[str, Any]]:
    """A message of the user's: results of calls first, as they come, then text."""
    out: list[dict[str, Any]] = []
    for block in blocks:
        if isinstance(block, ToolUse):
            raise RequestError(f"messages.{at}: a tool_use belongs to the assistant's message")
        if isinstance(block, ToolResult):
            words = _words(block.content or "")
            words = f"Error: {words}" if block.is_error else words
            out.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": words})
        elif isinstance(block, TextBlock):
            if out and out[-1]["role"] == role:
                out[-1]["content"] += "\n" + block.text
            else:
                out.append({"role": role, "content": block.text})
    return out or [{"role": role, "content": ""}]


def _words(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)
