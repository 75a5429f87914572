"""How models write calls: found by the markers in the checkpoint's own chat template."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pronghorn.model.tokenizer import Tokenizer

_MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>")
_LETTERS = string.ascii_letters + string.digits

Layout = Literal["object", "array", "named"]


@dataclass(frozen=True)
class Format:
    """One way to write calls.

    open: what stands before a call, "" where an answer that is JSON is one. close: what stands after it.
    between: what separates calls. key: the name that arguments go by. layout: "object" is
    {"name": ..., key: {...}}, "array" a list of such objects, "named" the bare name, [ARGS] and the
    arguments. marks: special tokens that are part of the format; text leaves them out otherwise.
    """

    open: str
    close: str
    between: str
    key: str
    layout: Layout
    marks: Mapping[int, str] = field(default_factory=dict)

    def call_id(self) -> str:
        """A new id. Mistral's templates refuse any but nine letters and digits."""
        word = "".join(secrets.choice(_LETTERS) for _ in range(9))
        return word if self.open == "[TOOL_CALLS]" else f"call_{word}"


HERMES = Format("<tool_call>", "\n</tool_call>", "\n", "arguments", "object")
LLAMA = Format("", "", "; ", "parameters", "object")
MISTRAL = Format("[TOOL_CALLS]", "", "", "arguments", "array")
MISTRAL_NAMED = Format("[TOOL_CALLS]", "", "", "arguments", "named")
PLAIN = Format("", "", "; ", "arguments", "object")


def takes_tools(template: str) -> bool:
    """Whether a chat template writes tools by itself."""
    return re.search(r"\btools\b", template) is not None


def find_format(tokenizer: Tokenizer) -> Format:
    """The format that a checkpoint was trained on; Hermes' where its template knows no tools."""
    template = tokenizer.chat_template
    if not takes_tools(template) or "<tool_call>" in template:
        found = HERMES
    elif "[TOOL_CALLS]" in template:
        found = MISTRAL_NAMED if "[ARGS]" in template else MISTRAL
    elif "<|python_tag|>" in template or '"parameters":' in template:
        found = LLAMA
    else:
        found = PLAIN
    marks = {id_: text for id_, text in tokenizer.special_tokens().items() if text in _MARKS}
    return Format(found.open, found.close, found.between, found.key, found.layout, marks)
