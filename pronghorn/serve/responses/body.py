"""Bodies of /v1/responses, and their items as messages of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from pronghorn.errors import RequestError
from pronghorn.serve import fields
from pronghorn.serve.fields import MOST, AsJson, AsText, Body, Extension, Name, Sampling, Text, words
from pronghorn.serve.tools import Choice, Tool, read_tool
from pronghorn.serve.tools.chat import Word
from pronghorn.serve.tools.spec import N_TOOLS_MAX

N_ITEMS_MAX = 10_000


class Part(fields.Part):
    kinds = ("input_text", "output_text", *fields.Part.kinds)


class Item(Body):
    """A message, a call, or what a call gave. What a model reasoned before is passed over."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    id: Name | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Text | list[Part] | None = None
    call_id: Name | None = None
    name: Name | None = None
    arguments: Text | None = None
    output: Text | list[Part] | None = None


class FunctionTool(Body):
    type: Literal["function"]
    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedChoice(Body):
    type: Literal["function"]
    name: Name


class AllowedChoice(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedChoice] = Field(min_length=1, max_length=N_TOOLS_MAX)


ToolChoice = Word | Annotated[NamedChoice | AllowedChoice, Field(discriminator="type")]


class AsSchema(Body):
    type: Literal["json_schema"]
    name: Name = ""
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    format: Annotated[AsText | AsJson | AsSchema, Field(discriminator="type")] | None = None


class ResponseBody(Body):
    model: Name | None = None
    input: Text | list[Item] = Field(union_mode="left_to_right")
    instructions: Text | None = None
    previous_response_id: Name | None = None
    store: bool | None = None
    tools: list[FunctionTool] | None = Field(None, max_length=N_TOOLS_MAX)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MOST)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    stream: bool | None = None
    metadata: dict[Name, Annotated[str, Field(max_length=4096)]] | None = Field(None, max_length=64)
    user: Name | None = None
    safety_identifier: Name | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: Literal[False] | None = None
    pronghorn: Extension | None = None

    @field_validator("input")
    @classmethod
    def _few(cls, items: Any) -> Any:
        if isinstance(items, list) and not 1 <= len(items) <= N_ITEMS_MAX:
            raise ValueError(f"{len(items)} items, give 1 to {N_ITEMS_MAX}")
        return items

    @property
    def sampling(self) -> Sampling:
        """The fields that every endpoint has."""
        own = ("model", "temperature", "top_p", "user", "safety_identifier", "pronghorn")
        return Sampling.model_validate({name: getattr(self, name) for name in own})

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """Of the answer's text, None for any text."""
        form = self.text.format if self.text else None
        if isinstance(form, AsSchema):
            return form.schema_
        return {"type": "object"} if isinstance(form, AsJson) else None


def read_tools(tools: Sequence[FunctionTool]) -> tuple[Tool, ...]:
    """Raises RequestError."""
    return tuple(read_tool(at, t.name, t.description, t.parameters, t.strict) for at, t in enumerate(tools))


def read_choice(choice: ToolChoice | None, many: bool) -> Choice:
    """A named function is called once; the model chooses when nothing is said."""
    if isinstance(choice, NamedChoice):
        return Choice("required", (choice.name,), False)
    if isinstance(choice, AllowedChoice):
        return Choice(choice.mode, tuple(tool.name for tool in choice.tools), many)
    return Choice(choice or "auto", (), many)


def as_messages(given: str | list[Item]) -> list[dict[str, Any]]:
    """Items as messages of the chat API; calls belong to the assistant's message before them.

    Raises RequestError naming an item that lacks something.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    out: list[dict[str, Any]] = []
    for at, item in enumerate(given):
        if item.type == "message":
            if item.role is None or item.content is None:
                raise RequestError(f"input.{at}: a message needs `role` and `content`")
            role = "system" if item.role == "developer" else item.role
            out.append({"role": role, "content": words(item.content)})
        elif item.type == "function_call":
            if not item.call_id or not item.name:
                raise RequestError(f"input.{at}: a function_call needs `call_id`, `name` and `arguments`")
            out = with_call(out, item.call_id, item.name, item.arguments or "{}")
        elif item.type == "function_call_output":
            if not item.call_id or item.output is None:
                raise RequestError(f"input.{at}: a function_call_output needs `call_id` and `output`")
            out.append({"role": "tool", "tool_call_id": item.call_id, "content": words(item.output)})
    return out


def with_call(messages: list[dict[str, Any]], id_: str, name: str, arguments: str) -> list[dict[str, Any]]:
    """`messages` with a call in the assistant's last message, or in one of its own."""
    call = {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
    if not messages or messages[-1]["role"] != "assistant":
        return [*messages, {"role": "assistant", "content": "", "tool_calls": [call]}]
    last = messages[-1]
    return [*messages[:-1], {**last, "tool_calls": [*last.get("tool_calls", []), call]}]
