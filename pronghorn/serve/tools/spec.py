"""What a caller offers: functions, and which of them the answer may or must call."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pronghorn.errors import RequestError

N_TOOLS_MAX = 128
N_SCHEMA_CHARS_MAX = 1 << 17  # of the schemas of all tools together
N_DEPTH_MAX = 24
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}\Z")

Mode = Literal["none", "auto", "required"]


@dataclass(frozen=True)
class Tool:
    """One function. parameters: JSON Schema of its arguments, an object's."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    strict: bool  # its arguments follow the schema even where calling it is the model's choice

    def described(self) -> dict[str, Any]:
        """As chat templates expect it (OpenAI's form)."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Choice:
    """mode: no call, the model's choice, or at least one call. names: what may be called, () for every
    tool. many: several calls in one answer."""

    mode: Mode = "auto"
    names: tuple[str, ...] = ()
    many: bool = True


def read_tool(at: int, name: object, description: object, parameters: object, strict: object) -> Tool:
    """A tool out of the parts of a body. Raises RequestError naming tool `at` and what is wrong with it."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise RequestError(
            f"tool {at} must have a name of 1 to 128 letters, digits, '_', '-' and '.', not {name!r:.80}"
        )
    if not isinstance(description, (str, type(None))):
        raise RequestError(f"the description of tool {name!r} must be text")
    if not isinstance(strict, (bool, type(None))):
        raise RequestError(f"`strict` of tool {name!r} must be true or false")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise RequestError(f"the parameters of tool {name!r} must be a JSON Schema of type object")
    return Tool(name, description or "", parameters, bool(strict))


def check_tools(tools: Sequence[Tool], choice: Choice) -> None:
    """Refuse too many or too large tools, equal names, and a choice that names none of them."""
    if len(tools) > N_TOOLS_MAX:
        raise RequestError(f"{len(tools)} tools, at most {N_TOOLS_MAX} are read; offer fewer")
    names: set[str] = set()
    n_left = N_SCHEMA_CHARS_MAX
    for tool in tools:
        if tool.name in names:
            raise RequestError(f"two tools are called {tool.name!r}; rename one")
        names.add(tool.name)
        if _depth(tool.parameters, 0) > N_DEPTH_MAX:
            raise RequestError(
                f"the parameters of tool {tool.name!r} nest deeper than {N_DEPTH_MAX}; flatten them"
            )
        n_left -= len(json.dumps(tool.parameters, ensure_ascii=False)) + len(tool.description)
        if n_left < 0:
            raise RequestError(f"the tools hold more than {N_SCHEMA_CHARS_MAX} characters; shorten them")
    if choice.mode == "required" and not tools:
        raise RequestError("tool_choice asks for a call, but no tools are given; pass tools")
    for name in choice.names:
        if name not in names:
            raise RequestError(f"tool_choice names {name!r}, which is none of the tools")


def _depth(value: object, depth: int) -> int:
    """How deep plain data nests; stops counting past the limit."""
    if depth > N_DEPTH_MAX or not isinstance(value, (dict, list)):
        return depth
    inner = value.values() if isinstance(value, dict) else value
    return max((_depth(each, depth + 1) for each in inner), default=depth + 1)
