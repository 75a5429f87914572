"""Writing a datastore: texts in, tokens and the order of their suffixes out.

Suffixes are sorted by prefix doubling (Manber and Myers, 1993, "Suffix arrays: a new method for on-line
string searches"), where only those that still have equals are sorted again (Larsson and Sadakane, 1999), and
only up to the depth that drafters look at: a corpus that repeats itself costs no more than another.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.datastore import DEPTH, TOKENS_MOST, Head, end
from pronghorn.errors import RequestError
from pronghorn.model.tokenizer import Tokenizer
from pronghorn.model.writing import Progress, replacing

PIECE = 1 << 20  # bytes of a text file that are one text, up to the end of a line
BLOCK = 1 << 20  # suffixes that are sorted at a time
LINE_MOST = 1 << 28  # bytes of a line of JSON


def quiet(done: int, total: int) -> None:
    """Progress for callers that want none."""


def build(
    out: Path, files: Sequence[Path], tokenizer: Tokenizer, model: str, progress: Progress = quiet
) -> Head:
    """Write a datastore of the texts in `files`; `out` is replaced when all went well. Takes some 50 bytes of
    memory for each token. Raises `RequestError` (a file that is no text, or no text at all) and
    `CheckpointError` (cannot be written)."""
    width = 2 if tokenizer.n_vocab <= end(2) else 4
    total = sum(_size(f) for f in files)
    parts, n_texts, before = [], 0, 0
    for file in files:
        for text, read in texts(file):
            ids = tokenizer.encode(text, bos=False)
            if ids:
                parts.append(np.asarray([*ids, end(width)], f"u{width}"))
                n_texts += 1
            progress(before + read, 2 * total)
        before += _size(file)
    if not parts:
        raise RequestError("there is no text in these files: give some")
    return write(out, np.concatenate(parts), n_texts, tokenizer, model,
                 lambda done, of: progress(total + total * done // of, 2 * total))  # fmt: skip


def write(
    out: Path, tokens: NDArray[Any], n_texts: int, tokenizer: Tokenizer, model: str,
    progress: Progress = quiet,
) -> Head:  # fmt: skip
    """Write a datastore of `tokens`: uint16 or uint32, with `end` after each text."""
    if len(tokens) > TOKENS_MOST:
        raise RequestError(f"{len(tokens):,} tokens are too many for one datastore: {TOKENS_MOST:,} at most")
    width = tokens.dtype.itemsize
    place = 4 if len(tokens) <= 1 << 32 else 8
    raw = tokens.astype(f">u{width}").tobytes()
    raw += bytes(-len(raw) % 8)
    places = order(tokens, DEPTH, progress).astype(f"<u{place}")
    digest = blake2b(raw, digest_size=32)
    digest.update(places.data)
    head = Head(width, place, DEPTH, tokenizer.n_vocab, len(tokens), n_texts, tokenizer.fingerprint,
                digest.digest(), model)  # fmt: skip
    with replacing(out) as temporary, temporary.open("wb") as file:
        file.write(head.pack())
        file.write(raw)
        file.write(places.data)
        file.flush()
        os.fsync(file.fileno())
    return head


def order(tokens: NDArray[Any], depth: int, progress: Progress = quiet) -> NDArray[Any]:
    """Places of the suffixes of `tokens` by their first `depth` tokens (a power of two); equal ones in the
    order of the text, and the end of it before everything."""
    n, known, rounds = len(tokens), 1, depth.bit_length()
    kind = np.int32 if n < 1 << 31 else np.int64
    places = np.argsort(tokens, kind="stable").astype(kind)
    loose = np.arange(n, dtype=kind)  # slots of `places` whose suffix has equals, in groups of those
    begins = _begins(tokens[places])
    rank = np.empty(n, kind)  # of each suffix: the first slot of its group
    rank[places] = np.maximum.accumulate(np.where(begins, loose, 0))
    loose = loose[~_alone(begins)]
    while known < depth and len(loose):
        progress(known.bit_length(), rounds)
        at = places[loose]
        then = np.full(len(at), -1, kind)  # rank of what comes `known` tokens later
        inside = at < n - known
        then[inside] = rank[at[inside] + known]
        for low, high in _blocks(rank[at]):
            own = rank[at[low:high]]
            again = np.lexsort((then[low:high], own))  # stable; `own` rises already, so groups stay in place
            at[low:high], then[low:high] = at[low:high][again], then[low:high][again]
        begins = _begins(rank[at]) | _begins(then)
        places[loose] = at
        rank[at] = np.maximum.accumulate(np.where(begins, loose, 0))
        loose = loose[~_alone(begins)]
        known *= 2
    progress(rounds, rounds)
    return places


def _begins(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where runs of equal values begin."""
    out = np.ones(len(values), np.bool_)
    out[1:] = values[1:] != values[:-1]
    return out


def _alone(begins: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which groups have one member, given where groups begin."""
    out: NDArray[np.bool_] = begins.copy()
    out[:-1] &= begins[1:]
    return out


def _blocks(group: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Parts of `BLOCK` members and more that end where a group does: what is sorted at a time."""
    low = 0
    while low < len(group):
        high = low + BLOCK
        high = len(group) if high >= len(group) else int(np.searchsorted(group, group[high], side="right"))
        yield low, high
        low = high


def texts(path: Path) -> Iterator[tuple[str, int]]:
    """The texts of a file, and bytes read up to there. A .jsonl file has one in each line: a string, an
    object with a "text", or one with "messages", of which the assistant's count. Any other file is cut at
    ends of lines. Raises `RequestError`."""
    try:
        with path.open("rb") as file:
            yield from _lines(path, file) if path.suffix == ".jsonl" else _pieces(path, file)
    except OSError as e:
        raise RequestError(f"cannot read {path}: {e.strerror or e}") from None


def _pieces(path: Path, file: Any) -> Iterator[tuple[str, int]]:
    decode = codecs.getincrementaldecoder("utf-8")().decode
    held, read = "", 0
    try:
        while data := file.read(PIECE):
            held += decode(data)
            read += len(data)
            cut = held.rfind("\n") + 1 or len(held)
            yield held[:cut], read
            held = held[cut:]
        yield held + decode(b"", True), read
    except UnicodeDecodeError:
        raise RequestError(f"{path} is not UTF-8 text: convert it") from None


def _lines(path: Path, file: Any) -> Iterator[tuple[str, int]]:
    read = number = 0
    while line := file.readline(LINE_MOST + 1):
        number += 1
        read += len(line)
        if len(line) > LINE_MOST:
            raise RequestError(f"{path}, line {number} is longer than {LINE_MOST >> 20} MiB: split it")
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            raise RequestError(f"{path}, line {number} is not JSON") from None
        found = list(_strings(value))
        if not found:
            raise RequestError(
                f'{path}, line {number} is neither a string nor an object with a "text" or with "messages"'
            )
        for text in found:
            yield text, read


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and isinstance(value.get("text"), str):
        yield value["text"]
    elif isinstance(value, dict) and isinstance(value.get("messages"), list):
        for m in value["messages"]:
            said = isinstance(m, dict) and m.get("role") == "assistant" and isinstance(m.get("content"), str)
            yield m["content"] if said else ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as e:
        raise RequestError(f"cannot read {path}: {e.strerror or e}") from None
