"""Vocabulary of llama2.c: tokenizer.bin or tok<n>.bin beside a .bin checkpoint, else a tokenizer.json.

Layout, little endian: int32 longest token, then per token float32 score, int32 length, bytes. Spaces are
spaces already; ids 0, 1, 2 are the unknown, begin and end tokens and 3..258 the bytes. Both 1 and 2 end
a text, since its models write the begin token between stories.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

from pronghorn.errors import CheckpointError
from pronghorn.model.tokenizer import Tokenizer, read_bounded
from pronghorn.model.vocab_hf import byte_token, load_hf
from pronghorn.model.vocab_scores import ScoreEncoder

_N_FILE_MAX = 64 << 20
_N_TOKEN_MAX = 1 << 16  # bytes of one token
_N_FIXED = 259  # unknown, begin, end, and 256 bytes
_MAGIC = b"24ka"  # versioned checkpoints: "ak42" as a little-endian number


def load_llama2c(checkpoint: Path) -> Tokenizer:
    """The tokenizer beside `checkpoint`, chosen by the vocabulary size in its header.

    Raises CheckpointError (no such file, truncated, lengths that lie, another vocabulary size), and what
    `load_hf` raises.
    """
    n_vocab = _n_vocab(checkpoint)
    names = [f"tok{n_vocab}.bin", "tokenizer.bin"]
    found = [path for name in names if (path := checkpoint.with_name(name)).is_file()]
    if not found:
        return _from_json(checkpoint, n_vocab, names)
    path = found[0]
    tokens, scores = _read(path)
    if len(tokens) != n_vocab:
        raise CheckpointError(
            f"{path} has {len(tokens)} tokens and {checkpoint.name} {n_vocab}; "
            "put the tokenizer that the model was trained with beside it"
        )
    if n_vocab < _N_FIXED:
        raise CheckpointError(
            f"{path} has {n_vocab} tokens, fewer than the {_N_FIXED} that every llama2.c file has; "
            "download it again"
        )
    texts = [token.decode("utf-8", "replace").strip("\n") for token in tokens[:_N_FIXED]]
    special = dict(enumerate(texts[:3]))
    byte_ids = {}
    pieces = [*([b""] * 3), *tokens[3:]]
    for id_ in range(3, _N_FIXED):
        if byte_token(texts[id_]) != bytes([id_ - 3]):
            raise CheckpointError(f"{path}: token {id_} is not byte 0x{id_ - 3:02X}; download it again")
        byte_ids[id_ - 3] = id_
        pieces[id_] = bytes([id_ - 3])
    mergeable: dict[str, int] = {}
    for id_ in range(n_vocab - 1, _N_FIXED - 1, -1):  # of two tokens alike the first counts
        mergeable[_text(tokens[id_], id_, path)] = id_
    mergeable.pop("", None)
    markup = {text: id_ for id_, text in special.items() if text and id_ != 0}
    encoder = ScoreEncoder(mergeable, scores, byte_ids, 0, markup, {}, prefix_space=True)
    return Tokenizer(encoder, pieces, special, 1, (1, 2), "", [1], [], drop_space=True)


def _from_json(checkpoint: Path, n_vocab: int, names: list[str]) -> Tokenizer:
    """The tokenizer.json that stands in where the format cannot hold a vocabulary (`pronghorn convert`)."""
    source = checkpoint.with_name("tokenizer.json")
    if not source.is_file():
        raise CheckpointError(
            f"no tokenizer beside {checkpoint}: put {', '.join(names)} or tokenizer.json into the same folder"
        )
    tokenizer = load_hf(source.parent)
    if tokenizer.n_vocab > n_vocab:
        raise CheckpointError(
            f"{source} has {tokenizer.n_vocab} tokens and {checkpoint.name} {n_vocab}; "
            "put the tokenizer that the model was trained with beside it"
        )
    return tokenizer


def _n_vocab(checkpoint: Path) -> int:
    """Vocabulary size in the header of a checkpoint: the sixth of its seven numbers."""
    try:
        with checkpoint.open("rb") as file:
            head = file.read(36)
    except OSError as error:
        raise CheckpointError(f"cannot read {checkpoint}: {error.strerror or error}") from None
    numbers = head[8:] if head[:4] == _MAGIC else head[:28]
    if len(numbers) != 28:
        raise CheckpointError(f"{checkpoint} is truncated; download it again")
    n_vocab: int = abs(struct.unpack("<7i", numbers)[5])  # negative: an output matrix of its own
    return n_vocab


def _text(token: bytes, id_: int, path: Path) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: token {id_} is not UTF-8; download it again") from None


def _read(path: Path) -> tuple[list[bytes], list[float]]:
    """(bytes, score) of every token in a file."""
    data = read_bounded(path, _N_FILE_MAX)
    tokens: list[bytes] = []
    scores: list[float] = []
    longest = struct.unpack_from("<i", data)[0] if len(data) >= 4 else -1
    if not 0 < longest <= _N_TOKEN_MAX:
        raise CheckpointError(f"{path} claims tokens of {longest} bytes; it is no tokenizer file")
    at = 4
    while at < len(data):
        if at + 8 > len(data):
            raise CheckpointError(f"{path} ends inside a token; download it again")
        score, n_bytes = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 <= n_bytes <= min(longest, len(data) - at) or not math.isfinite(score):
            raise CheckpointError(
                f"{path}: token {len(tokens)} claims {n_bytes} bytes and the score {score}; download it again"
            )
        tokens.append(data[at : at + n_bytes])
        scores.append(score)
        at += n_bytes
    return tokens, scores
