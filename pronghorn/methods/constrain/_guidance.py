"""What the grammar constraints share: llguidance behind the slot's `ConstraintState`.

llguidance walks an Earley parser and a lazy lexer over the bytes of our tokens. It answers masks, rolls
back and forks; here are only its limits, its errors and the translation of its tables.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import RequestError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from pronghorn.model.tokenizer import Tokenizer

N_GRAMMAR_MAX = 1 << 18  # characters of a schema or pattern
_MARK = "\x02"  # a character that merges with no other: what follows it is cut as mid-text is

# Building the tables of a vocabulary takes about a second for 128,000 tokens: once per tokenizer.
_TABLES: weakref.WeakKeyDictionary[Tokenizer, LLTokenizer] = weakref.WeakKeyDictionary()


class _Vocabulary:
    """A `Tokenizer` in the shape that llguidance asks for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos[0]
        self.bos_token_id = None
        # 0xFF never occurs in text: it marks what no grammar may produce (special tokens, holes).
        pieces = tokenizer.vocabulary()
        self.tokens = [piece or b"\xff[%d]" % id_ for id_, piece in enumerate(pieces)]
        self.special_token_ids = [id_ for id_, piece in enumerate(pieces) if not piece]
        self.is_tokenizer_wrapper = True  # llguidance's own wrapper would try bytes first

    def __call__(self, text: str) -> list[int]:
        """Ids of `text` in the middle of a text, where no leading space is added."""
        tokenizer = self._tokenizer
        ids = tokenizer.encode(_MARK + text, bos=False)
        for at, id_ in enumerate(ids):
            if tokenizer.token_bytes(id_) == _MARK.encode():
                return ids[at + 1 :]
        return tokenizer.encode(text, bos=False)


def _tables(tokenizer: Tokenizer) -> LLTokenizer:
    from llguidance import LLTokenizer

    if tokenizer not in _TABLES:
        if not tokenizer.eos:
            raise RequestError(
                "a constraint needs to know which token ends a text, and this tokenizer names none; "
                "add eos_token to its tokenizer_config.json"
            )
        # The library's stub asks for its wrapper class; it reads these attributes only.
        vocabulary: Any = _Vocabulary(tokenizer)
        _TABLES[tokenizer] = LLTokenizer(vocabulary, n_vocab=tokenizer.n_vocab, eos_token=list(tokenizer.eos))
    return _TABLES[tokenizer]


def check_size(what: str, text: str) -> None:
    """Refuse a schema or pattern that is too long or no Unicode text. Raises RequestError."""
    if len(text) > N_GRAMMAR_MAX:
        raise RequestError(
            f"the {what} has {len(text)} characters, at most {N_GRAMMAR_MAX} are read; shorten it"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the {what} holds a lone surrogate at character {error.start}; pass valid Unicode"
        ) from None


def open_grammar(what: str, grammar: str, tokenizer: Tokenizer) -> GuidedState:
    """A walk at the start of `grammar` (llguidance's form); `what` names its source in errors.

    Raises RequestError for a grammar that is malformed, unsupported, too large or matches nothing.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        max_lexer_states=50_000,  # 1-2 kB each
        max_grammar_size=100_000,
        verbose_errors=False,  # its errors would carry the whole grammar
    )
    matcher = LLMatcher(_tables(tokenizer), grammar, log_level=0, limits=limits)
    state = GuidedState(what, matcher, tokenizer.n_vocab, frozenset(tokenizer.eos), 0, 0)
    state.check()
    probe = np.zeros(tokenizer.n_vocab, dtype=np.bool_)
    state.mask(probe)
    if not probe.any():
        raise RequestError(f"the {what} matches no text of this vocabulary; change it")
    return state


class GuidedState:
    """A walk through a grammar (see `slots.ConstraintState`).

    Tokens that end the text are counted here: the library does not take one where nothing else can
    follow. After the first one only further ones are allowed, so that no mask is ever empty.
    """

    def __init__(
        self,
        what: str,
        matcher: LLMatcher,
        n_vocab: int,
        eos: frozenset[int],
        n_text: int,
        n_ends: int,
    ) -> None:
        self._what, self._matcher, self._n_vocab, self._eos = what, matcher, n_vocab, eos
        self._n_text, self._n_ends = n_text, n_ends  # tokens consumed: of the text, after its end
        self._bits = np.zeros(-(-n_vocab // 32), dtype=np.int32)

    def mask(self, out: NDArray[np.bool_]) -> None:
        """out (n,), n of the model: True where the next token is allowed.

        Rows of a model beyond the vocabulary are False; tokens beyond the model cannot come. Raises
        RequestError where the grammar became too complex to follow.
        """
        n = min(out.shape[0], self._n_vocab)
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self.check()
        bits = np.unpackbits(self._bits.view(np.uint8), count=n, bitorder="little")
        out[:n] = bits if not self._n_ends else 0
        out[n:] = False
        out[[id_ for id_ in self._eos if id_ < n]] = self._may_end()

    def advance(self, ids: Sequence[int]) -> int:
        """Consume tokens up to the first that is not allowed; returns how many were."""
        at = 0
        while at < len(ids):
            if ids[at] in self._eos:
                if not self._may_end():
                    break
                self._n_ends += 1
                at += 1
                continue
            text: list[int] = []
            for id_ in ids[at:]:  # up to an end; the library would take a strange id for its own failure
                if id_ in self._eos or not 0 <= id_ < self._n_vocab:
                    break
                text.append(int(id_))
            n_done = 0 if self._n_ends else self._matcher.try_consume_tokens(text)
            self.check()
            self._n_text += n_done
            at += n_done
            if n_done < len(text) or not text:
                break
        return at

    def rollback(self, n: int) -> None:
        """Undo the last `n` consumed tokens. Raises ValueError where fewer were consumed."""
        n_consumed = self._n_text + self._n_ends
        if not 0 <= n <= n_consumed:
            raise ValueError(f"rollback of {n} tokens after {n_consumed}")
        n_text = max(0, n - self._n_ends)
        self._n_ends = max(0, self._n_ends - n)
        if n_text:
            self._matcher.rollback(n_text)
            self.check()
            self._n_text -= n_text

    def fork(self) -> GuidedState:
        """An independent walk at the same place, which can also roll back what led here."""
        matcher = self._matcher.deep_copy()
        return GuidedState(self._what, matcher, self._n_vocab, self._eos, self._n_text, self._n_ends)

    def forced(self) -> list[int]:
        """Tokens that must come next, [] when there is a choice.

        These are the tokens of the only bytes that the grammar allows, cut as the tokenizer cuts text: the
        masks alone would also allow other cuts of the same bytes. Forcing them changes no byte of any
        text, but it does take the choice between cuts from the model. A last token that could merge with
        what follows is left to the model.
        """
        if self.done():
            return []
        ids: list[int] = self._matcher.compute_ff_tokens()
        return ids[: self._matcher.validate_tokens(ids)] if ids else []

    def done(self) -> bool:
        """Nothing can follow but the end of the text."""
        self.check()
        return bool(self._n_ends or self._matcher.is_stopped())

    def _may_end(self) -> bool:
        return bool(self._n_ends or self._matcher.is_accepting())

    def check(self) -> None:
        """Raise RequestError where the library gave up; it stays so."""
        if self._matcher.is_error():
            cause = self._matcher.get_error().split("\n<")[0]
            cause = " ".join(cause.split())[:300]
            raise RequestError(f"the {self._what} cannot be followed: {cause}; change or simplify it")
