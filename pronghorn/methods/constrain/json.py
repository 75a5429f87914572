"""JSON only, or JSON of a schema (llguidance; Moskal et al., github.com/guidance-ai/llguidance).

Keywords of JSON Schema that are not implemented are refused, not ignored. Departures: by default at most
`whitespace` blanks stand between two parts, where JSON allows any number, since a model that may write
blanks for ever sometimes does; properties come in the schema's order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pronghorn.errors import RequestError
from pronghorn.methods.constrain._guidance import check_size, open_grammar
from pronghorn.types import Guarantee, Traits

if TYPE_CHECKING:
    from pronghorn.methods.constrain._guidance import GuidedState
    from pronghorn.model.tokenizer import Tokenizer

_N_WHITESPACE_MAX = 256


@dataclass(frozen=True)
class Json:
    """schema: a JSON Schema as text, "" for any object. whitespace: blanks allowed between two parts."""

    schema: str = ""
    whitespace: int = 20
    traits = Traits(Guarantee.EXACT)

    def open(self, tokenizer: Tokenizer) -> GuidedState:
        """A walk at the start. Raises RequestError for a schema that cannot be followed."""
        from llguidance import LLMatcher

        check_size("JSON schema", self.schema)
        if not 0 <= self.whitespace <= _N_WHITESPACE_MAX:
            raise RequestError(f"whitespace must be from 0 to {_N_WHITESPACE_MAX}")
        text = self.schema or '{"type": "object"}'
        try:
            if isinstance(schema := json.loads(text), bool):  # true: anything; false: nothing
                text = "{}" if schema else '{"enum": []}'
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the JSON schema is not JSON: {error}; correct it") from None
        options: dict[str, object] = {"whitespace_flexible": self.whitespace > 0, "lenient": False}
        if self.whitespace:
            options["whitespace_pattern"] = rf"[\x20\x0A\x0D\x09]{{1,{self.whitespace}}}"
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=options)  # type: ignore[arg-type]
        except ValueError as error:
            raise RequestError(f"the JSON schema cannot be read: {error}; correct it") from None
        return open_grammar("JSON schema", grammar, tokenizer)
