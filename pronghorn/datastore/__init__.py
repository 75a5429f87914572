"""A datastore: texts as tokens in one file, with their suffixes in order, for drafters to look up what
followed. `datastore.build` writes it.

    head    HEAD, fixed size, which ends in a digest of itself
    tokens  big-endian, 2 or 4 bytes each, so that bytes compare as tokens do; the largest number, which is no
            token, ends each text
    places  little-endian, 4 or 8 bytes each: where suffixes start, in the order of their first `depth` tokens

Tokens are filled up with zero bytes to a multiple of 8. The file is mapped, never read whole and never
executed. Nothing in it is believed: sizes must add up to the file's before anything else is looked at, places
outside the texts lead nowhere, and a number that is no token ends a text wherever it stands. So a damaged or
malicious file costs drafts that are wrong, and drafts change no output.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.types import Ints

if TYPE_CHECKING:
    from pronghorn.model.tokenizer import Tokenizer

VERSION = 1
MAGIC = b"PRONGDS\0"
DEPTH = 64  # tokens by which suffixes are sorted: more than any drafter looks at
TOKENS_MOST = 1 << 40
VOCAB_MOST = 1 << 31
_HEAD = struct.Struct("<8sIBBHQQQ32s32s96s")
_DIGEST = 32
SIZE = _HEAD.size + _DIGEST  # a multiple of 8
_CHUNK = 1 << 24  # bytes digested at a time


@dataclass(frozen=True)
class Head:
    """What a datastore says of itself.

    token, place: bytes of one; depth: tokens by which suffixes are sorted; n_tokens: ends of texts included;
    tokenizer: its `Tokenizer.fingerprint`; data: digest of everything behind the head; model: what named the
    tokenizer, for people."""

    token: int
    place: int
    depth: int
    n_vocab: int
    n_tokens: int
    n_texts: int
    tokenizer: bytes
    data: bytes
    model: str

    def pack(self) -> bytes:
        name = self.model.encode()[:96].decode(errors="ignore").encode()
        head = _HEAD.pack(
            MAGIC, VERSION, self.token, self.place, self.depth, self.n_vocab, self.n_tokens, self.n_texts,
            self.tokenizer, self.data, name,
        )  # fmt: skip
        return head + blake2b(head, digest_size=_DIGEST).digest()

    @property
    def places_at(self) -> int:
        """The byte at which places begin."""
        return SIZE + -(-self.n_tokens * self.token // 8) * 8

    @property
    def whole(self) -> int:
        """Bytes of the file."""
        return self.places_at + self.n_tokens * self.place


def parse(head: bytes, size: int, name: str) -> Head:
    """The head of a file of `size` bytes. Raises `MethodError` where it is none, or not of that file."""
    if len(head) < SIZE or head[:8] != MAGIC:
        raise MethodError(f"{name} is no datastore: `pronghorn datastore build` makes one")
    _, version, token, place, depth, n_vocab, n_tokens, n_texts, tokenizer, data, model = _HEAD.unpack(
        head[: _HEAD.size]
    )
    if version != VERSION:
        raise MethodError(f"{name} is a datastore of version {version}, this program reads {VERSION}: build "
                          "it again")  # fmt: skip
    h = Head(token, place, depth, n_vocab, n_tokens, n_texts, tokenizer, data,
             model.rstrip(b"\0").decode(errors="replace"))  # fmt: skip
    damaged = head[_HEAD.size : SIZE] != blake2b(head[: _HEAD.size], digest_size=_DIGEST).digest()
    ranges = (
        token in (2, 4) and place in (4, 8) and depth >= 1 and 1 <= n_vocab <= min(VOCAB_MOST, end(token))
        and 1 <= n_tokens <= min(TOKENS_MOST, 1 << 8 * place) and n_texts <= n_tokens
    )  # fmt: skip
    if damaged or not ranges:
        raise MethodError(f"the head of the datastore {name} is damaged: build it again")
    if h.whole != size:
        raise MethodError(f"the datastore {name} has {size} bytes and should have {h.whole}: build it again")
    return h


def end(token: int) -> int:
    """The number that ends a text, of tokens of so many bytes."""
    return (1 << 8 * token) - 1


class Datastore:
    """A datastore's file, mapped. Raises `MethodError` for one that cannot be read or is none."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            with os.fdopen(fd, "rb") as file:
                about = os.fstat(fd)
                if not stat.S_ISREG(about.st_mode):
                    raise MethodError(f"{self.path} is no datastore: it is no file")
                self.head = parse(file.read(SIZE), about.st_size, str(self.path))
                self._bytes = mmap.mmap(fd, self.head.whole, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:
            why = getattr(e, "strerror", None) or str(e)
            raise MethodError(f"cannot read the datastore {str(self.path)!r}: {why}") from None
        h = self.head
        self.tokens: NDArray[Any] = np.frombuffer(self._bytes, f">u{h.token}", h.n_tokens, SIZE)
        self.places: NDArray[Any] = np.frombuffer(self._bytes, f"<u{h.place}", h.n_tokens, h.places_at)

    def check(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        """Refuse tokens that are not those of a model of `n_vocab` rows. Raises `MethodError`."""
        h = self.head
        if h.tokenizer != tokenizer.fingerprint or not h.n_vocab == tokenizer.n_vocab <= n_vocab:
            made = f" (it was built for {h.model})" if h.model else ""
            raise MethodError(
                f"the datastore {self.path} holds tokens of another tokenizer than the model's{made}: build "
                "it again with `pronghorn datastore build --model`"
            )

    def find(self, text: Sequence[int], longest: int, shortest: int) -> tuple[int, int, int]:
        """The longest suffix of `text` that occurs, `longest` tokens down to `shortest`: its length, and
        the first and the end of its places. (0, 0, 0) where none does."""
        tail: list[int] = []
        for token in reversed(text[-min(longest, self.head.depth) :]):
            if not 0 <= token < self.head.n_vocab:
                break
            tail.append(token)
        if len(tail) < shortest:
            return 0, 0, 0
        raw = np.asarray(tail[::-1], self.tokens.dtype).tobytes()
        low = self._first(raw, shortest)
        if low < 0:
            return 0, 0, 0
        least, most = shortest, len(tail)
        while least < most:  # what a suffix of an occurring text is occurs too
            mid = (least + most + 1) // 2
            at = self._first(raw, mid)
            if at >= 0:
                least, low = mid, at
            else:
                most = mid - 1
        wanted = raw[len(raw) - least * self.head.token :]
        high = bisect_right(self.places, wanted, low, key=self._reader(len(wanted)))
        return least, low, high

    def _first(self, raw: bytes, n: int) -> int:
        """The first of the places where the last n tokens of `raw` stand, -1 where they do nowhere."""
        wanted = raw[len(raw) - n * self.head.token :]
        read = self._reader(len(wanted))
        low = bisect_left(self.places, wanted, key=read)
        return low if low < len(self.places) and read(self.places[low]) == wanted else -1

    def _reader(self, n: int) -> Any:
        """place -> the first n bytes of the suffix there."""
        held, width = self._bytes, self.head.token
        stop = SIZE + self.head.n_tokens * width

        def read(place: Any) -> bytes:
            at = SIZE + int(place) * width
            return held[at : min(at + n, stop)]

        return read

    def after(self, span: int, low: int, high: int, length: int, most: int) -> Ints:
        """(n, length) tokens that follow the `span` tokens at each place, -1 behind the end of a text; of
        more than `most` places so many, evenly spread."""
        n = high - low
        chosen = np.arange(low, high) if n <= most else low + np.arange(most, dtype=np.int64) * n // most
        at = self.places[chosen].astype(np.int64)[:, None] + span + np.arange(length)
        outside = (at < 0) | (at >= self.head.n_tokens)
        got = self.tokens[np.where(outside, 0, at)].astype(np.int64)
        got[np.logical_or.accumulate(outside | (got >= self.head.n_vocab), axis=1)] = -1
        return got.astype(np.int32)

    def verify(self) -> None:
        """Read all of it. Raises `MethodError` where it is not what was written."""
        h = blake2b(digest_size=_DIGEST)
        for at in range(SIZE, self.head.whole, _CHUNK):
            h.update(self._bytes[at : min(at + _CHUNK, self.head.whole)])
        if h.digest() != self.head.data:
            raise MethodError(f"the datastore {self.path} is damaged: build it again")
