"""Text to token ids and back: one class for every vocabulary, and the factory that finds the right one.

How text is cut differs between vocabularies and lives behind `Encoder`. How ids become text does not:
every token is a fixed byte string, so decoding is concatenation and one UTF-8 decode. That is what
lets the incremental detokenizer equal the decode of the whole, and gives grammars exact bytes.
Departure from the `tokenizers` library: a malformed byte sequence becomes U+FFFD by the usual rule
(one per maximal invalid part) for every vocabulary, where its SentencePiece decoder writes one per byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pronghorn.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    from pronghorn.model.chat_template import ChatTemplate

N_VOCAB_MAX = 1 << 22  # larger ids are a lie: the vocabulary is held as a list indexed by id


class Encoder(Protocol):
    """How a vocabulary cuts text; adds no begin or end token."""

    def encode(self, text: str, special: bool) -> list[int]:
        """Ids of `text`; `special` parses special-token markup, otherwise it is plain text."""
        ...


class Pieces(Protocol):
    """Bytes of each id, b"" for special tokens and holes: a list, or what makes them when asked."""

    def __len__(self) -> int: ...
    def __getitem__(self, id_: int, /) -> bytes: ...
    def __iter__(self) -> Iterator[bytes]: ...


class Tokenizer:
    """A vocabulary: ids 0..n_vocab-1, each with the exact bytes that it contributes to text.

    An id may have no token (a hole): its bytes are b"" and `encode` never returns it.
    """

    n_vocab: int
    bos: int  # -1 when absent
    eos: tuple[int, ...]  # every id that the vocabulary says ends a text
    chat_template: str  # "" when absent

    def __init__(
        self,
        encoder: Encoder,
        pieces: Pieces,
        special: Mapping[int, str],
        bos: int,
        eos: tuple[int, ...],
        chat_template: str,
        prefix: Sequence[int],
        suffix: Sequence[int],
        drop_space: bool,
    ) -> None:
        """Hold a vocabulary that a loader has read.

        pieces: see `Pieces`. special: markup of each special
        token. prefix, suffix: what `encode` puts around a text when `bos` is asked for. drop_space:
        encoding puts a space before the text, so decoding takes one away (SentencePiece).
        Raises CheckpointError where an id lies outside the vocabulary.
        """
        self.n_vocab = len(pieces)
        for id_ in (*special, *eos, *prefix, *suffix, *([bos] if bos != -1 else [])):
            if not 0 <= id_ < self.n_vocab:
                raise CheckpointError(
                    f"the tokenizer names token id {id_}, but its vocabulary has {self.n_vocab} ids; "
                    "download the tokenizer again"
                )
        self.bos, self.eos, self.chat_template = bos, eos, chat_template
        self.drop_space = drop_space
        self._encoder, self._pieces, self._special = encoder, pieces, dict(special)
        self._prefix, self._suffix = list(prefix), list(suffix)
        self._chat: ChatTemplate | None = None  # compiled at the first use

    def encode(self, text: str, special: bool = False, bos: bool = True) -> list[int]:
        """Ids of `text`.

        special: parse the markup of special tokens (chat templates); otherwise it is plain text.
        bos: add what the vocabulary's own rule puts around a text (a begin token, or nothing).
        Raises RequestError where `text` is no text, or not encodable as UTF-8 (lone surrogates).
        """
        if not isinstance(text, str):
            raise RequestError(f"a prompt must be text, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text holds a lone surrogate at character {error.start}; pass valid Unicode"
            ) from None
        ids = self._encoder.encode(text, special)
        return [*self._prefix, *ids, *self._suffix] if bos else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the whole of `ids`: special tokens skipped, malformed UTF-8 as U+FFFD.

        Raises RequestError for an id outside the vocabulary.
        """
        text = b"".join(map(self.token_bytes, ids))
        return text[self.drop_space and text[:1] == b" " :].decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """Exact bytes that `token` contributes to text; b"" for special tokens and holes.

        Raises RequestError for an id outside the vocabulary.
        """
        self._check(token)
        return self._pieces[token]

    def is_special(self, token: int) -> bool:
        """Whether `token` is markup, not text. Raises RequestError for an id outside the vocabulary."""
        self._check(token)
        return token in self._special

    def vocabulary(self) -> list[bytes]:
        """Bytes of every id, in order (a copy)."""
        return list(self._pieces)

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that say what each id stands for."""
        h = blake2b(digest_size=32)
        for id_, piece in enumerate(self._pieces):
            mark = self._special.get(id_, "").encode("utf-8", "replace")
            h.update(struct.pack("<II", len(piece), len(mark)) + piece + mark)
        return h.digest()

    def special_tokens(self) -> dict[int, str]:
        """Markup of each special token (a copy)."""
        return dict(self._special)

    def chat(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] = (),
    ) -> list[int]:
        """Ids of a conversation, as the checkpoint's chat template writes it.

        messages: dicts of `role` and `content`. tools: what the model may call, as OpenAI's API describes
        functions; a template that knows no tools leaves them out. The template writes its own begin token,
        so none is added. Special-token markup inside texts of messages and tools is plain text there, so
        that a message cannot end itself and speak for another role. Two cases are left, where it is parsed
        as the template's own: a template that does more to texts than trim them or write them as JSON, and
        a SentencePiece vocabulary, which cannot encode a text in parts (each would gain a space).
        Raises RequestError (no template, malformed messages, or the template refuses them) and
        CheckpointError (the template is broken or hostile).
        """
        if self._chat is None:
            if not self.chat_template:
                raise RequestError(
                    "this checkpoint has no chat template; pass a plain prompt, or use a model "
                    "trained for chat"
                )
            from pronghorn.model.chat_template import ChatTemplate

            self._chat = ChatTemplate(
                self.chat_template,
                bos_token=self._special.get(self.bos, ""),
                eos_token=self._special.get(self.eos[0], "") if self.eos else "",
            )
        markup = [] if self.drop_space else [text for text in self._special.values() if text]
        ids: list[int] = []
        for text, special in self._chat.parts(messages, add_generation_prompt, markup, tools):
            ids += self.encode(text, special=special, bos=False)
        return ids

    def _check(self, token: int) -> None:
        if not 0 <= token < self.n_vocab:
            raise RequestError(f"token id {token} is outside the vocabulary (0..{self.n_vocab - 1})")


def load_tokenizer(path: Path, gguf_metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a checkpoint.

    path: a Hugging Face folder or a .safetensors file in it, a .gguf file (its metadata is passed, since
    the loader has read it), or a llama2.c .bin, whose tokenizer file lies beside it. gguf_metadata: {} for
    the other kinds.
    Raises CheckpointError (missing, malformed, contradicting itself) and UnsupportedError (a kind of
    vocabulary that is not implemented).
    """
    if gguf_metadata:
        from pronghorn.model.vocab_gguf import load_gguf

        return load_gguf(gguf_metadata)
    if path.is_dir() or path.suffix == ".safetensors":
        from pronghorn.model.vocab_hf import load_hf

        return load_hf(path if path.is_dir() else path.parent)
    from pronghorn.model.vocab_llama2c import load_llama2c

    return load_llama2c(path)


def read_bounded(path: Path, n_max: int) -> bytes:
    """Bytes of a file of at most `n_max` bytes. Raises CheckpointError (absent, unreadable, larger)."""
    try:
        with path.open("rb") as file:
            data = file.read(n_max + 1)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}: {error.strerror or error}; download the tokenizer again"
        ) from None
    if len(data) > n_max:
        raise CheckpointError(
            f"{path} is larger than {n_max >> 20} MiB, which no tokenizer file needs; "
            "check that it is the right file"
        )
    return data


def check_ids(ids: Sequence[int], n_max: int) -> None:
    """Refuse a vocabulary whose ids repeat or whose largest id is absurd. Raises CheckpointError."""
    if not ids:
        raise CheckpointError("the tokenizer's vocabulary is empty; download the tokenizer again")
    if max(ids) >= n_max or min(ids) < 0:
        raise CheckpointError(
            f"the tokenizer names token id {max(ids)}; ids from 0 to {n_max - 1} are possible"
        )
    if len(set(ids)) != len(ids):
        raise CheckpointError("the tokenizer gives one id to two tokens; download the tokenizer again")
