"""Incremental detokenizing: never half a character, and in sum the decode of the whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pronghorn.model.detokenize import Detokenizer
from pronghorn.model.tokenizer import Tokenizer


class NoEncoder:
    """These tests only decode."""

    def encode(self, text: str, special: bool) -> list[int]:
        raise NotImplementedError


PIECES = [bytes([byte]) for byte in range(256)] + [
    b"", b"", b" the", b" \xf0\x9f", b"\x98\x80", b"\xe6\xbc", b"\xa2 ", "漢字".encode(), b" ",
    b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80",
]  # fmt: skip


def tokenizer(drop_space: bool) -> Tokenizer:
    return Tokenizer(NoEncoder(), PIECES, {256: "<s>"}, 256, (256,), "", [256], [], drop_space)


@given(st.lists(st.integers(0, len(PIECES) - 1), max_size=40), st.booleans())
def test_pushed_text_is_the_decode_of_the_whole(ids, drop_space):
    vocabulary = tokenizer(drop_space)
    stream = Detokenizer(vocabulary)
    parts = [stream.push(id_) for id_ in ids]
    assert "".join(parts) + stream.flush() == vocabulary.decode(ids)


@given(st.text(max_size=30))
def test_no_half_character_and_no_delay(text):
    stream = Detokenizer(tokenizer(False))
    done = ""
    for byte in text.encode():
        part = stream.push(byte)
        done += part
        assert len(part) <= 1
        assert text.startswith(done)
    assert done == text
    assert stream.flush() == ""


def test_flush_shows_what_is_left():
    stream = Detokenizer(tokenizer(False))
    assert stream.push(259) == " "
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


def test_leading_space_is_dropped_once_and_special_tokens_do_not_count():
    stream = Detokenizer(tokenizer(True))
    assert [stream.push(id_) for id_ in (256, 257, 264, 258)] == ["", "", "", " the"]
