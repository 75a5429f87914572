"""Incremental detokenizing: text as tokens arrive, never half a character.

The bytes of a token may end inside a UTF-8 character; they wait until it is complete or known to be
malformed. What was emitted, in order, is `Tokenizer.decode` of all ids pushed.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from types import MappingProxyType

from pronghorn.model.tokenizer import Tokenizer


class Detokenizer:
    """One stream of text. `push` each token, `flush` once at the end."""

    def __init__(self, tokenizer: Tokenizer, shown: Mapping[int, str] = MappingProxyType({})) -> None:
        """shown: special tokens that are written, as this text; the others are skipped."""
        self._tokenizer = tokenizer
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True  # no byte seen: a SentencePiece vocabulary's leading space is still due

    def push(self, token: int) -> str:
        """The text that `token` completes, "" where a character is still incomplete.

        Raises RequestError for an id outside the vocabulary.
        """
        if token in self._shown:
            return self._decoder.decode(self._shown[token].encode())
        piece = self._tokenizer.token_bytes(token)
        if self._at_start and piece:
            self._at_start = False
            piece = piece[self._tokenizer.drop_space and piece[:1] == b" " :]
        if piece.isascii() and not self._decoder.getstate()[0]:  # what most are
            return piece.decode()
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left at the end: an incomplete character as U+FFFD."""
        return self._decoder.decode(b"", final=True)
