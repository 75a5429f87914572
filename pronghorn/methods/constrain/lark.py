"""Text of a context-free grammar in Lark's notation (llguidance, github.com/guidance-ai/llguidance).

Of the library's additions, `%json {...}` takes a JSON schema into a rule, `<[7]>` the token with id 7, and
`rule[lazy]: ...` ends at the first match. What a schema inside says about blanks is its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pronghorn.errors import RequestError
from pronghorn.methods.constrain._guidance import check_size, open_grammar
from pronghorn.types import Guarantee, Traits

if TYPE_CHECKING:
    from pronghorn.methods.constrain._guidance import GuidedState
    from pronghorn.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Lark:
    """grammar: what the whole text must match."""

    grammar: str
    traits = Traits(Guarantee.EXACT)

    def open(self, tokenizer: Tokenizer) -> GuidedState:
        """A walk at the start. Raises RequestError for a grammar that cannot be followed."""
        from llguidance import LLMatcher

        if not self.grammar.strip():
            raise RequestError("the grammar is empty; write a rule called start")
        check_size("grammar", self.grammar)
        return open_grammar("grammar", LLMatcher.grammar_from_lark(self.grammar), tokenizer)
