"""Tools as bodies of chat completions describe them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from pronghorn.serve.fields import Body, Name, Text
from pronghorn.serve.tools.spec import N_TOOLS_MAX, Choice, Tool, read_tool


class Function(Body):
    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: Name


class NamedChoice(Body):
    type: Literal["function"]
    function: NamedFunction


class Allowed(Body):
    mode: Literal["auto", "required"]
    tools: list[NamedChoice] = Field(min_length=1, max_length=N_TOOLS_MAX)


class AllowedChoice(Body):
    type: Literal["allowed_tools"]
    allowed_tools: Allowed


Word = Literal["none", "auto", "required"]
ChatToolChoice = Word | Annotated[NamedChoice | AllowedChoice, Field(discriminator="type")]


def read_tools(tools: Sequence[ChatTool]) -> tuple[Tool, ...]:
    """Raises RequestError."""
    functions = [tool.function for tool in tools]
    return tuple(
        read_tool(at, f.name, f.description, f.parameters, f.strict) for at, f in enumerate(functions)
    )


def read_choice(choice: ChatToolChoice | None, many: bool) -> Choice:
    """A named function is called once; the model chooses when nothing is said."""
    if isinstance(choice, NamedChoice):
        return Choice("required", (choice.function.name,), False)
    if isinstance(choice, AllowedChoice):
        allowed = choice.allowed_tools
        return Choice(allowed.mode, tuple(tool.function.name for tool in allowed.tools), many)
    return Choice(choice or "auto", (), many)
