"""Log-probabilities of tokens in the forms of the two endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pronghorn.model.tokenizer import Tokenizer
from pronghorn.serve.generation import markup, token_text

FLOOR = -9999.0  # what the OpenAI API writes for "next to impossible"; JSON has no minus infinity


def of_chat(
    tokenizer: Tokenizer, tokens: Sequence[int], logprobs: Sequence[float], tops: Sequence[Any]
) -> list[dict[str, Any]]:
    """Entries of `choice.logprobs.content`."""
    out = []
    for i, token in enumerate(tokens):
        entry = _entry(tokenizer, token, logprobs[i])
        entry["top_logprobs"] = [_entry(tokenizer, t, p) for t, p in (tops[i] if i < len(tops) else ())]
        out.append(entry)
    return out


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    return {
        "token": token_text(tokenizer, token), "logprob": max(logprob, FLOOR), "bytes": list(data) or None
    }  # fmt: skip


def of_completion(
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    logprobs: Sequence[float | None],
    tops: Sequence[Any],
    start: int,
) -> dict[str, Any]:
    """`choice.logprobs` of a completion. logprobs: None where there is none (a text's first token). Offsets
    count characters from `start`."""
    names = [_name(tokenizer, t) for t in tokens]
    offsets, at = [], start
    for token in tokens:
        offsets.append(at)
        at += len(tokenizer.token_bytes(token).decode("utf-8", "replace"))
    alternatives: list[dict[str, float] | None] = []
    for i, token in enumerate(tokens):
        value = logprobs[i]
        if value is None:
            alternatives.append(None)
            continue
        found = {_name(tokenizer, t): max(p, FLOOR) for t, p in (tops[i] if i < len(tops) else ())}
        found.setdefault(_name(tokenizer, token), max(value, FLOOR))  # the token itself is always there
        alternatives.append(found)
    return {
        "tokens": names,
        "token_logprobs": [None if p is None else max(p, FLOOR) for p in logprobs],
        "top_logprobs": alternatives,
        "text_offset": offsets,
    }


def _name(tokenizer: Tokenizer, token: int) -> str:
    """A token's text, distinct from every other token's: a part of a character is written in bytes."""
    data = tokenizer.token_bytes(token)
    if not data:
        return markup(tokenizer).get(token) or f"<|{token}|>"
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in data)
