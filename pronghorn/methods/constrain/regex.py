"""Text that matches a regular expression as a whole (llguidance's derivative-based lexer).

The syntax is that of Rust's `regex` crate: no look-around and no back-references, which also bounds the
time of a step. `.` is any character but a line end.
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
class Regex:
    """pattern: what the whole text must match."""

    pattern: str
    traits = Traits(Guarantee.EXACT)

    def open(self, tokenizer: Tokenizer) -> GuidedState:
        """A walk at the start. Raises RequestError for a pattern that cannot be followed."""
        from llguidance import LLMatcher

        if not self.pattern:
            raise RequestError("the pattern is empty: only the empty text would match; write one")
        check_size("pattern", self.pattern)
        return open_grammar("pattern", LLMatcher.grammar_from_regex(self.pattern), tokenizer)
