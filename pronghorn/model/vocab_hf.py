"""Vocabulary of a Hugging Face folder: tokenizer.json and the small files beside it.

The `tokenizers` library cuts the text. Bytes of tokens are derived here from the decoder that
tokenizer.json declares: byte-level (GPT-2's table of 256 printable characters) or SentencePiece style
(a marker for space, `<0xNN>` byte tokens).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pronghorn.errors import CheckpointError, PronghornError, RequestError, UnsupportedError
from pronghorn.model.tokenizer import N_VOCAB_MAX, Tokenizer, check_ids, read_bounded
from pronghorn.model.vocab_scores import UTF8_BYTES

if TYPE_CHECKING:
    import tokenizers

N_TOKENIZER_MAX = 64 << 20  # bytes; the largest in use is about 35 MB
_N_CONFIG_MAX = 4 << 20
_N_AROUND_MAX = 16  # tokens that a post-processor may put around a text
_N_GROWTH_MAX = 64  # how much longer a normalizer may make a text: 2 is the most in use
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

T = TypeVar("T")


def byte_of_char() -> dict[str, int]:
    """GPT-2's table: the printable character that stands for each of the 256 bytes, inverted.

    Printable Latin-1 bytes stand for themselves; the others take characters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + at): byte for at, byte in enumerate(hidden)})
    return table


def byte_level_piece(token: str, table: dict[str, int]) -> bytes:
    """Bytes of a byte-level token; one with a character outside the table stands for itself."""
    try:
        return bytes([table[char] for char in token])
    except KeyError:
        return token.encode()


def byte_token(token: str) -> bytes:
    """The byte that `<0xNN>` names, b"" for any other token."""
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else b""


class LibraryEncoder:
    """A `tokenizers.Tokenizer` behind `Encoder`."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        self._library = library
        self._lock = threading.Lock()  # whether markup is parsed is state of the library's object

    def encode(self, text: str, special: bool) -> list[int]:
        """Ids of `text`; see `Encoder`. Raises RequestError where the library gives up."""
        with self._lock:
            self._library.encode_special_tokens = not special
            return list(
                guarded(
                    lambda: self._library.encode(text, add_special_tokens=False).ids,
                    lambda cause: RequestError(f"the tokenizer cannot encode this text: {cause}"),
                )
            )


class LibraryPieces:
    """`Pieces` made from the library's tokens: a vocabulary has 150,000, of which an answer needs few."""

    def __init__(
        self, library: tokenizers.Tokenizer, n: int, piece_of: Callable[[str], bytes], whole: dict[int, bytes]
    ) -> None:
        """n: ids. piece_of: bytes of a token's text. whole: bytes of the ids to which that does not apply."""
        self._library, self._n, self._piece_of, self._known = library, n, piece_of, dict(whole)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, id_: int) -> bytes:
        if id_ not in self._known:
            text = self._library.id_to_token(id_)
            self._known[id_] = b"" if text is None else self._piece_of(text)
        return self._known[id_]

    def __iter__(self) -> Iterator[bytes]:
        return map(self.__getitem__, range(self._n))


def guarded(call: Callable[[], T], error: Callable[[str], PronghornError]) -> T:
    """`call()`, with whatever the library raises as `error(cause)`.

    Its panics derive from BaseException alone, hence the wide net; interruptions pass through.
    """
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as cause:
        raise error(" ".join(str(cause).split())[:200]) from None


def load_hf(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder.

    Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja; all but
    the first may be absent. Raises CheckpointError and UnsupportedError.
    """
    source = folder / "tokenizer.json"
    if not source.exists():
        raise CheckpointError(
            f"no tokenizer.json in {folder}; save the tokenizer again with "
            "`AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`"
        )
    library = parse_library(read_bounded(source, N_TOKENIZER_MAX), str(source))
    config = _json_object(folder / "tokenizer_config.json")
    names = _json_object(folder / "special_tokens_map.json") | config
    bos, eos = (_named(library, names, name, folder) for name in ("bos_token", "eos_token"))
    template = _template(folder, config)
    ends = (eos,) if eos >= 0 else ()
    return from_library(library, str(source), bos, ends, template, *around(library, str(source)))


def parse_library(data: bytes, source: str) -> tokenizers.Tokenizer:
    """The library's tokenizer of a tokenizer.json, without truncation, padding or dropout.

    Raises CheckpointError, also for a normalizer made to blow up a text.
    """
    import tokenizers

    def refuse(cause: str) -> PronghornError:
        return CheckpointError(f"{source} is malformed: {cause}; download the tokenizer again")

    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise refuse(str(error)) from None
    library = guarded(lambda: tokenizers.Tokenizer.from_str(text), refuse)
    library.no_truncation()
    library.no_padding()
    if getattr(library.model, "dropout", None) is not None:
        library.model.dropout = None
    growth = 1
    for part in _parts(library.normalizer):
        content = part.get("content", part.get("prepend", ""))
        growth *= max(1, len(content) if isinstance(content, str) else 1)
    if growth > _N_GROWTH_MAX:
        raise refuse(f"its normalizer can make a text {growth} times longer")
    return library


def from_library(
    library: tokenizers.Tokenizer,
    source: str,
    bos: int,
    eos: tuple[int, ...],
    chat_template: str,
    prefix: list[int],
    suffix: list[int],
) -> Tokenizer:
    """`Tokenizer` over the library's object; the other arguments as there.

    Raises CheckpointError (ids that repeat or are absurd, missing bytes) and UnsupportedError (a
    decoder whose tokens are not byte strings).
    """
    added = library.get_added_tokens_decoder()
    piece_of, drop_space = _piece_rule(library, source)
    whole = {id_: b"" if entry.special else entry.content.encode() for id_, entry in added.items()}
    pieces = LibraryPieces(library, _count(library), piece_of, whole)
    _check_bytes(library, pieces, source)
    special = {id_: entry.content for id_, entry in added.items() if entry.special}
    return Tokenizer(
        LibraryEncoder(library),
        pieces,
        special,
        bos,
        eos,
        chat_template,
        prefix,
        suffix,
        drop_space,
    )


def _count(library: tokenizers.Tokenizer) -> int:
    """Ids of a vocabulary, the largest plus one. Raises CheckpointError for ids that repeat or are absurd.

    Where there are as many tokens as ids that have one, from 0 on, each token has an id of its own. Only
    else is the whole vocabulary asked for, which takes three times as long.
    """
    n = int(library.get_vocab_size(with_added_tokens=True))
    if 0 < n <= N_VOCAB_MAX and None not in map(library.id_to_token, range(n)):
        return n
    vocab: dict[str, int] = library.get_vocab(with_added_tokens=True)
    check_ids(list(vocab.values()), N_VOCAB_MAX)
    return max(vocab.values()) + 1


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """The steps of a component of the library's pipeline as plain dicts, sequences flattened."""
    waiting = [json.loads(component.__getstate__())] if component is not None else []
    while waiting:
        part = waiting.pop(0)
        inner = part.get("decoders") or part.get("pretokenizers") or part.get("normalizers")
        if part.get("type") == "Sequence" and inner is not None:
            waiting = [*inner, *waiting]
        elif part.get("type") != "Sequence":
            yield part


def _piece_rule(library: tokenizers.Tokenizer, source: str) -> tuple[Callable[[str], bytes], bool]:
    """(bytes of a token's text, whether decoding drops a leading space), from the declared decoder."""
    parts = list(_parts(library.decoder))
    if not parts:  # none declared: a byte-level cut still says what its tokens mean
        parts = [*_parts(library.pre_tokenizer), *_parts(library.normalizer)]
        parts = [part for part in parts if part["type"] == "ByteLevel"]
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}:
        table = byte_of_char()
        return lambda token: byte_level_piece(token, table), False
    drop_space, replaced = False, []
    for part in parts:
        match part:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                replaced.append((old, new))
            case {"type": "Metaspace", "replacement": str(marker)}:
                replaced.append((marker, " "))
                drop_space = part.get("prepend_scheme", "always") != "never"
            case {"type": "Strip", "content": " ", "start": (0 | 1) as start, "stop": 0}:
                drop_space = start == 1
            case {"type": "ByteFallback" | "Fuse"}:
                pass
            case _:
                raise UnsupportedError(
                    f"{source} decodes with {part}; byte-level and SentencePiece decoders are supported"
                )
    if not parts:
        raise UnsupportedError(
            f"{source} declares no decoder; byte-level and SentencePiece decoders are supported"
        )
    fallback = "ByteFallback" in kinds

    def piece(token: str) -> bytes:
        if fallback and (byte := byte_token(token)):
            return byte
        for old, new in replaced:
            token = token.replace(old, new)
        return token.encode()

    return piece, drop_space


def _check_bytes(library: tokenizers.Tokenizer, pieces: LibraryPieces, source: str) -> None:
    """Refuse a byte vocabulary with holes: without an unknown token the library drops text silently."""
    model = library.model
    cuts = [*_parts(library.pre_tokenizer), *_parts(library.normalizer)]
    byte_wise = any(part["type"] == "ByteLevel" for part in cuts)
    if not (byte_wise or getattr(model, "byte_fallback", False)):
        return
    if getattr(model, "unk_token", None) is not None or hasattr(model, "unk_id"):
        return
    # A token for each byte is usually found by its usual text; else it may still be any of all tokens.
    texts = [chars for char, byte in byte_of_char().items() for chars in (char, f"<0x{byte:02X}>")]
    ids = (library.token_to_id(text) for text in texts)
    present = {pieces[id_] for id_ in ids if id_ is not None}
    if any(bytes([byte]) not in present for byte in UTF8_BYTES):
        present = set(pieces)
    missing = [byte for byte in UTF8_BYTES if bytes([byte]) not in present]
    if missing:
        raise CheckpointError(
            f"{source} has no token for {len(missing)} of the bytes of UTF-8 (first: "
            f"0x{missing[0]:02X}) and no unknown token, so text would be lost; "
            "download the tokenizer again"
        )


def around(library: tokenizers.Tokenizer, source: str) -> tuple[list[int], list[int]]:
    """What the post-processor puts before and after a text."""

    def refuse(cause: str) -> PronghornError:
        return CheckpointError(f"{source} has a post-processor that is not usable: {cause}")

    bare: list[int] = guarded(lambda: library.encode("a", add_special_tokens=False).ids, refuse)
    full: list[int] = guarded(lambda: library.encode("a", add_special_tokens=True).ids, refuse)
    n_around = len(full) - len(bare)
    if not 0 <= n_around <= _N_AROUND_MAX:
        raise refuse(f"it adds {n_around} tokens")
    for n_before in range(n_around, -1, -1):
        if full[n_before : n_before + len(bare)] == bare:
            return full[:n_before], full[n_before + len(bare) :]
    raise refuse("it changes the tokens of the text")


def _json_object(path: Path) -> dict[str, Any]:
    """The object in a small JSON file, {} where the file is absent."""
    if not path.exists():
        return {}
    try:
        value = json.loads(read_bounded(path, _N_CONFIG_MAX))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is malformed: {error}; download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; download it again")
    return value


def _named(library: tokenizers.Tokenizer, names: dict[str, Any], name: str, folder: Path) -> int:
    """Id of a token that the configuration names (as text, or an object with `content`), or -1."""
    entry = names.get(name)
    if isinstance(entry, dict):
        entry = entry.get("content")
    if not isinstance(entry, str) or not entry:
        return -1
    id_ = library.token_to_id(entry)
    if id_ is None:
        raise CheckpointError(
            f"tokenizer_config.json in {folder} names {entry!r} as {name}, which tokenizer.json does "
            "not have; download both files again"
        )
    return id_


def _template(folder: Path, config: dict[str, Any]) -> str:
    """Source of the chat template: its own file first, then the configuration's default one."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return read_bounded(path, _N_CONFIG_MAX).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path} is malformed: {error}; download it again") from None
    template = config.get("chat_template") or ""
    if isinstance(template, list):  # several, by name
        default = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = default[0].get("template", "") if default else ""
    if not isinstance(template, str):
        raise CheckpointError(
            f"chat_template in {folder / 'tokenizer_config.json'} is not text; download it again"
        )
    return template
