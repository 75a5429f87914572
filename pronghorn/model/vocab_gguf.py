"""Vocabulary inside a GGUF file (the `tokenizer.*` keys of its metadata).

`tokenizer.ggml.model` names the kind: "gpt2" is byte-level BPE, whose merges are in the file while the
regular expression that cuts words is only named (`tokenizer.ggml.pre`); "llama" is SentencePiece BPE by
scores. A file that also carries the source's whole tokenizer.json ("tokenizer.huggingface.json", as
`pronghorn convert` writes it) is read by that: it says exactly what the names can only point to. Departure
from llama.cpp: the Unicode normalization of the models behind a name is applied, as
their own tokenizer.json does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pronghorn.errors import CheckpointError, UnsupportedError
from pronghorn.model.tokenizer import N_VOCAB_MAX, Tokenizer, check_ids
from pronghorn.model.vocab_hf import N_TOKENIZER_MAX, around, byte_token, from_library, guarded, parse_library
from pronghorn.model.vocab_scores import ScoreEncoder

if TYPE_CHECKING:
    import tokenizers

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)  # tokenizer.ggml.token_type
_N_TOKEN_MAX = 1 << 16  # characters of one token

# How words are cut, by what `tokenizer.ggml.pre` names. Alternatives, in order: contractions, words with
# one leading non-letter, numbers, punctuation, line ends, spaces.
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_MARKS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_GPT4 = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _MARKS + _TAIL
_QWEN = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _MARKS + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_SLASHED = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = _CASED % ("", "") + r"|\p{N}" + _SLASHED + _TAIL
_GPT4O = _CASED % (f"{_SHORT}?", f"{_SHORT}?") + r"|\p{N}{1,3}" + _SLASHED + _TAIL
_GPT2, _DIGITS = "", "digits"  # the library has these two built in
_CUTS = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe", "gigachat"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe"), _GPT4),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), _QWEN),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
}
_WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "llama3", "llama-v3", "tekken"})  # and a begin token
_COMPOSED = frozenset({"qwen2", "deepseek-r1-qwen", "olmo"})  # text is normalized to NFC


def load_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file's metadata.

    Raises CheckpointError (missing keys, lengths or ids that disagree) and UnsupportedError (another kind
    of vocabulary, or a way to cut words that is not known).
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens = _list(metadata, "tokens", str)
    check_ids(range(len(tokens)), N_VOCAB_MAX)
    if max(map(len, tokens)) > _N_TOKEN_MAX:
        raise _broken(f"a token is longer than {_N_TOKEN_MAX} characters")
    types = _list(metadata, "token_type", int) or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise _broken(f"it has {len(tokens)} tokens and {len(types)} token types")
    bos = _id(metadata, "bos", len(tokens))
    named = [_id(metadata, name, len(tokens)) for name in ("eos", "eot", "eom")]
    eos = tuple(dict.fromkeys(id_ for id_ in named if id_ >= 0))
    for id_ in (bos, *eos):
        if id_ >= 0 and types[id_] == _NORMAL:
            types[id_] = _CONTROL  # older converters mark every token as normal
    add_bos = metadata.get("tokenizer.ggml.add_bos_token")
    template = metadata.get("tokenizer.chat_template", "")
    if not isinstance(template, str):
        raise _broken("its chat template is not text")
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str):
        raise _broken("tokenizer.ggml.pre is not text")
    if add_bos is None:
        add_bos = kind == "llama" or pre in _WHOLE_WORDS_FIRST
    prefix = [bos] if add_bos and bos >= 0 else []
    suffix = list(eos[:1]) if metadata.get("tokenizer.ggml.add_eos_token") else []
    if (whole := metadata.get("tokenizer.huggingface.json")) is not None:
        if not isinstance(whole, str) or len(whole) > N_TOKENIZER_MAX:
            raise _broken("tokenizer.huggingface.json is not a text of reasonable size")
        source = "the GGUF file's tokenizer.huggingface.json"
        library = parse_library(whole.encode("utf-8", "surrogatepass"), source)
        return from_library(library, source, bos, eos, template, *around(library, source))
    if kind == "gpt2":
        library = _byte_level(pre, _list(metadata, "merges", str), tokens, types)
        return from_library(library, "the GGUF file", bos, eos, template, prefix, suffix)
    if kind == "llama":
        space = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        scores = _list(metadata, "scores", float)
        return _scored(tokens, types, scores, space, bos, eos, template, prefix, suffix)
    raise UnsupportedError(
        f"the GGUF file's vocabulary is of the kind {kind!r}; 'gpt2' (byte-level BPE) and 'llama' "
        "(SentencePiece BPE) are supported"
    )


def _byte_level(pre: str, merges: list[str], tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    """The library's tokenizer of a "gpt2" vocabulary."""
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Library

    if pre not in _CUTS:
        raise UnsupportedError(
            f"the GGUF file cuts words by the rule {pre!r}, which is not known; known are "
            f"{', '.join(sorted(_CUTS))}. Load the model's Hugging Face folder instead"
        )
    pairs = [_pair(merge) for merge in merges]
    vocab = {token: id_ for id_, token in enumerate(tokens) if types[id_] != _UNUSED}
    if len(vocab) != len(tokens) - types.count(_UNUSED):
        raise _broken("two of its tokens are the same")
    model = guarded(lambda: models.BPE(vocab, pairs, ignore_merges=pre in _WHOLE_WORDS_FIRST), _broken)
    library = Library(model)
    cut = _CUTS[pre]
    steps: list[pre_tokenizers.PreTokenizer] = []
    if cut == _DIGITS:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    elif cut != _GPT2:
        steps.append(pre_tokenizers.Split(Regex(cut), "isolated"))
    by_library = cut in (_GPT2, _DIGITS)
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_library))
    library.pre_tokenizer = pre_tokenizers.Sequence(steps)
    library.decoder = decoders.ByteLevel()
    if pre in _COMPOSED:
        library.normalizer = normalizers.NFC()
    for id_, kind in enumerate(types):
        if kind in (_CONTROL, _UNKNOWN, _USER) and tokens[id_]:
            special = kind != _USER
            token = AddedToken(tokens[id_], special=special, normalized=False)
            (library.add_special_tokens if special else library.add_tokens)([token])
    return library


def _scored(
    tokens: list[str],
    types: list[int],
    scores: list[float],
    prefix_space: bool,
    bos: int,
    eos: tuple[int, ...],
    template: str,
    prefix: list[int],
    suffix: list[int],
) -> Tokenizer:
    """`Tokenizer` of a "llama" vocabulary."""
    if len(scores) != len(tokens):
        raise _broken(f"it has {len(tokens)} tokens and {len(scores)} scores")
    if not all(map(math.isfinite, scores)):
        raise _broken("a score of a token is not a finite number")
    texts = [token.replace("\u2581", " ") for token in tokens]
    byte_ids = {byte[0]: id_ for id_, token in enumerate(tokens)
                if types[id_] in (_BYTE, _NORMAL) and (byte := byte_token(token))}  # fmt: skip
    pieces = [text.encode("utf-8", "surrogatepass") for text in texts]
    for value, id_ in byte_ids.items():
        pieces[id_] = bytes([value])
    special = {id_: tokens[id_] for id_, kind in enumerate(types) if kind in (_CONTROL, _UNKNOWN)}
    for id_ in special:
        pieces[id_] = b""
    bytes_taken = set(byte_ids.values())
    encoder = ScoreEncoder(
        {text: id_ for id_, text in enumerate(texts)
         if text and types[id_] in (_NORMAL, _USER) and id_ not in bytes_taken},
        scores,
        byte_ids,
        types.index(_UNKNOWN) if _UNKNOWN in types else -1,
        {text: id_ for id_, text in special.items() if text and types[id_] == _CONTROL},
        {text: id_ for id_, text in enumerate(texts) if text and types[id_] == _USER},
        prefix_space,
    )  # fmt: skip
    return Tokenizer(encoder, pieces, special, bos, eos, template, prefix, suffix, prefix_space)


def _broken(cause: str) -> CheckpointError:
    return CheckpointError(
        f"the GGUF file's vocabulary is malformed: {cause}; download or convert the file again"
    )


def _list(metadata: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    """A list of the metadata with items of one type, [] where it is absent."""
    items = metadata.get(f"tokenizer.ggml.{name}", [])
    if not isinstance(items, Sequence) or not all(isinstance(item, kind) for item in items):
        raise _broken(f"tokenizer.ggml.{name} is not a list of {kind.__name__}")
    return list(items)


def _id(metadata: Mapping[str, Any], name: str, n_vocab: int) -> int:
    """An id that the metadata names, -1 where it is absent."""
    id_ = metadata.get(f"tokenizer.ggml.{name}_token_id", -1)
    if not isinstance(id_, int):
        raise _broken(f"tokenizer.ggml.{name}_token_id is not a number")
    if id_ in (-1, 0xFFFFFFFF):  # both mean that there is none
        return -1
    if not 0 <= id_ < n_vocab:
        raise _broken(f"tokenizer.ggml.{name}_token_id is {id_}, with {n_vocab} tokens")
    return id_


def _pair(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (left and space and right):
        raise _broken(f"a merge is not a pair: {merge[:40]!r}")
    return left, right
