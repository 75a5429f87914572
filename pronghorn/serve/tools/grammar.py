"""The grammar of an answer that calls: names and arguments as their schemas say, in the model's form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pronghorn.serve.tools.format import Format
from pronghorn.serve.tools.spec import Tool

N_CALLS_MAX = 32  # in one answer: a small model may else call for ever
# Blanks as Python's json writes them: what checkpoints were trained on, and no endless run of them.
_JSON = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", ", "lenient": False}
_ANY_TEXT = "TEXT: /(.|\\n)*/"


def enforced(form: Format, tools: Sequence[Tool], many: bool) -> str:
    """Nothing but calls: one, or with `many` one or more."""
    calls, rules = _calls(form, tools, many)
    return _text(f"start: {calls}", *rules)


def offered(form: Format, tools: Sequence[Tool], many: bool) -> str:
    """Free text in which a call, once it has begun, is one of these; only strict tools' schemas hold."""
    loose = [t if t.strict else Tool(t.name, "", {"type": "object"}, False) for t in tools]
    calls, rules = _calls(form, loose, many)
    if not form.open:
        free = 'TEXT: /(.|\\n)*/ & ~/\\s*\\{"name": "(.|\\n)*/'
        return _text(f"start: TEXT | {calls}", free, *rules)
    if (opener := _literal(form, form.open)).startswith("<"):  # a token of its own
        return _text(f"start: TEXT | TEXT {calls}", _ANY_TEXT, *rules)
    calls, rules = _calls(form, loose, False, opener="trigger")
    start = "start: (TEXT | one)" if not many else f"start: one{{0,{N_CALLS_MAX}}} TEXT"
    return _text(start, f"one: {calls}", f"trigger[lazy]: TEXT {opener}", _ANY_TEXT, *rules)


def answer_or_calls(form: Format, tools: Sequence[Tool], many: bool, schema: Mapping[str, Any]) -> str:
    """JSON of a schema, or calls."""
    calls, rules = _calls(form, tools, many)
    return _text(f"start: answer | {calls}", f"answer: {_json(schema)}", *rules)


def _calls(form: Format, tools: Sequence[Tool], many: bool, opener: str = "") -> tuple[str, list[str]]:
    """An expression for the calls, and the rules that it needs."""
    rules = [f"args_{at}: {_json(tool.parameters)}" for at, tool in enumerate(tools)]
    opener = opener or _literal(form, form.open)
    if form.layout == "named":
        heads = [f"{_literal(form, tool.name + '[ARGS]')} args_{at}" for at, tool in enumerate(tools)]
    else:
        starts = ['{"name": ' + json.dumps(t.name) + f', "{form.key}": ' for t in tools]
        heads = [f'{_quoted(start)} args_{at} "}}"' for at, start in enumerate(starts)]
    rules.append(f"body: {' | '.join(heads)}")
    more = f"{{0,{N_CALLS_MAX - 1}}}"
    if form.layout == "array":
        rest = f'(", " body){more}' if many else ""
        return f'{opener} "[" body {rest} "]"', rules
    before = _quoted("\n") if form.open and form.layout == "object" else ""
    call = " ".join(each for each in (opener, before, "body", _literal(form, form.close)) if each)
    rules.append(f"call: {call}")
    return (f"call ({_quoted(form.between)} call){more}" if many else "call"), rules


def _literal(form: Format, text: str) -> str:
    """`text` as terms of a rule; markers that are special tokens by their ids."""
    for id_, mark in form.marks.items():
        before, found, after = text.partition(mark)
        if found:
            parts = (_literal(form, before), f"<[{id_}]>", _literal(form, after))
            return " ".join(part for part in parts if part)
    return _quoted(text) if text else ""


def _quoted(text: str) -> str:
    return json.dumps(text)


def _json(schema: Mapping[str, Any]) -> str:
    """A schema as a term of a rule."""
    kind = {} if {"type", "$ref", "anyOf", "oneOf", "allOf"} & schema.keys() else {"type": "object"}
    return "%json " + json.dumps({**schema, **kind, "x-guidance": _JSON})


def _text(*lines: str) -> str:
    return "\n".join(lines) + "\n"
