"""GGUF's tokenizer keys, from whichever vocabulary a checkpoint has.

A tokenizer.json goes in whole under "tokenizer.huggingface.json"; llama.cpp's own keys (tokens,
kinds, merges or scores) stand beside it for programs that read only those.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pronghorn.errors import CheckpointError
from pronghorn.model import llama2c
from pronghorn.model.checkpoint import Checkpoint
from pronghorn.model.hf import MAX_JSON, read_json
from pronghorn.model.writing import source_folder


def add_tokenizer(writer: Any, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Tokenizer keys, from a GGUF source's own, a tokenizer.json, or llama2.c's vocabulary."""
    for key, ids in (("eos", checkpoint.eos[:1]), ("eot", checkpoint.eos[1:2])):
        if ids:
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", ids[0])
    if checkpoint.bos >= 0:
        writer.add_uint32("tokenizer.ggml.bos_token_id", checkpoint.bos)
    if checkpoint.kind == "gguf":
        return _copy_tokenizer(writer, checkpoint)
    if checkpoint.kind == "llama2c":
        return _add_llama2c_vocabulary(writer, checkpoint)
    file = source_folder(checkpoint) / "tokenizer.json"
    if not file.exists():
        return ("the source has no tokenizer.json, so the GGUF file has no tokenizer",)
    tokenizer = read_json(file, MAX_JSON)
    try:
        writer.add_string("tokenizer.huggingface.json", file.read_text(encoding="utf-8"))
        if template := _chat_template(source_folder(checkpoint)):
            writer.add_string("tokenizer.chat_template", template)
        _add_vocabulary(writer, tokenizer, checkpoint.config["vocab_size"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is not a tokenizer.json that can be read: {error}") from error
    return ()


def _copy_tokenizer(writer: Any, checkpoint: Checkpoint) -> tuple[str, ...]:
    import gguf

    written = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.bos_token_id"}
    written.add("tokenizer.ggml.eot_token_id")
    for key, value in checkpoint.gguf_metadata.items():
        if key in written:
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            kinds = gguf.GGUFValueType
            whole = kinds.UINT32 if type(value) is int and 0 <= value < 2**32 else kinds.INT64
            kind = {bool: kinds.BOOL, int: whole, float: kinds.FLOAT32}
            writer.add_key_value(key, value, kind.get(type(value), kinds.STRING))
    return ()


def _add_vocabulary(writer: Any, tokenizer: dict[str, Any], n_tokens: int) -> None:
    """llama.cpp's own keys from a tokenizer.json: tokens, kinds, and merges or scores."""
    model = tokenizer.get("model") or {}
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: [piece, score] pairs
        pieces = {str(piece): i for i, (piece, _) in enumerate(vocabulary)}
        scores = [float(score) for _, score in vocabulary]
    else:
        pieces, scores = {str(piece): int(i) for piece, i in vocabulary.items()}, []
    tokens = [f"[PAD{i}]" for i in range(n_tokens)]
    kinds = [5] * n_tokens  # unused
    for piece, i in pieces.items():
        if 0 <= i < n_tokens:
            tokens[i], kinds[i] = piece, 1
    for added in tokenizer.get("added_tokens") or []:
        i = added["id"]
        if 0 <= i < n_tokens:
            tokens[i], kinds[i] = added["content"], 3 if added.get("special") else 4
    byte_fallback = bool(model.get("byte_fallback"))
    writer.add_string("tokenizer.ggml.model", "llama" if byte_fallback or scores else "gpt2")
    writer.add_string("tokenizer.ggml.pre", "default")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", kinds)
    if scores or byte_fallback:
        # A BPE with byte fallback has ranks instead of scores: earlier pieces merge first.
        ranked = scores or [float(-i) for i in range(n_tokens)]
        ranked += [0.0] * (n_tokens - len(ranked))
        writer.add_array("tokenizer.ggml.scores", ranked[:n_tokens])
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
    writer.add_array("tokenizer.ggml.merges", merges)


def _chat_template(folder: Path) -> str:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "tokenizer_config.json").is_file():
        template = read_json(folder / "tokenizer_config.json", MAX_JSON).get("chat_template")
        if isinstance(template, str):
            return template
    return ""


def _add_llama2c_vocabulary(writer: Any, checkpoint: Checkpoint) -> tuple[str, ...]:
    n_tokens = checkpoint.config["vocab_size"]
    beside = llama2c.find_vocabulary(checkpoint.path, n_tokens)
    if beside is None:
        return (f"no tokenizer .bin with {n_tokens} tokens lies beside {checkpoint.path.name}",)
    pieces = llama2c.read_vocabulary(beside, n_tokens)
    writer.add_string("tokenizer.ggml.model", "llama")
    writer.add_string("tokenizer.ggml.pre", "default")
    # llama2.c writes a plain space where SentencePiece has its own mark.
    texts = [piece.decode("utf-8", errors="replace").replace(" ", "\u2581") for piece, _ in pieces]
    kinds = [2, 3, 3] + [6 if _is_byte(text) else 1 for text in texts[3:]]
    writer.add_array("tokenizer.ggml.tokens", texts)
    writer.add_array("tokenizer.ggml.scores", [float(score) for _, score in pieces])
    writer.add_array("tokenizer.ggml.token_type", kinds[:n_tokens])
    return ()


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")
