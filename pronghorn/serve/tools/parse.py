"""Calls out of an answer's text as it streams.

One machine reads character by character, so the result does not depend on how the text was cut. It holds
back only what may still turn out to be a call: a marker's beginning, blanks before one, and a call up to
its arguments, at most `_N_HELD_MAX` characters. What turns out to be none is text of the answer. Once the
name and the first character of the arguments are known the call stands, and arguments pass through as
they come.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass

from pronghorn.serve.tools.format import Format

_N_HELD_MAX = 1 << 14
_N_BLANKS_MAX = 256
_END = ""  # what `_peek` gives at the end of the text
_BLANKS = " \t\r\n"
_PYTHON_TAG = "<|python_tag|>"

Steps = Generator[None, None, str]  # a part of the machine: waits for characters, returns some
Deeds = Generator[None, None, None]


@dataclass(frozen=True)
class Text:
    """Text of the answer itself."""

    text: str


@dataclass(frozen=True)
class Begin:
    """A call begins: its number in this answer, id and function."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class Arguments:
    """More of a call's arguments, as JSON text."""

    index: int
    text: str


@dataclass(frozen=True)
class End:
    """A call is complete, or the answer ended inside it."""

    index: int


Part = Text | Begin | Arguments | End


class _NoCallError(Exception):
    """What was held back is no call."""


@dataclass
class _Head:
    """What is known of a call before it stands."""

    name: str = ""
    arguments: str = ""


class CallParser:
    """`push` text, `flush` once at the end; both return what became certain."""

    def __init__(self, form: Format, names: Collection[str], many: bool, new_id: Callable[[], str]) -> None:
        """names: functions that may be called; a call of another one is text. many: read further calls;
        else what follows the first is dropped."""
        self._form, self._names, self._many, self._new_id = form, names, many, new_id
        self._out: list[Part] = []
        self._text: list[str] = []  # text or arguments not yet in `_out`
        self._held: list[str] | None = None  # characters of what may be a call
        self._input, self._at, self._ended = "", 0, False
        self.n_calls = 0
        self._open = False  # a call stands and has not ended
        self._machine = self._answer()
        next(self._machine)

    @property
    def done(self) -> bool:
        """The one call that may be made is complete; nothing more will come out."""
        return not self._many and self.n_calls > 0 and not self._open

    def push(self, text: str) -> list[Part]:
        return self._feed(text)

    def flush(self) -> list[Part]:
        self._ended = True
        return self._feed("")

    def _feed(self, text: str) -> list[Part]:
        self._input, self._at = text, 0
        if text or self._ended:
            next(self._machine, None)
        self._emit()
        out, self._out = self._out, []
        return out

    # ------------------------------------------------------------------ characters

    def _peek(self) -> Steps:
        while self._at == len(self._input):
            if self._ended:
                return _END
            yield
        return self._input[self._at]

    def _take(self) -> Steps:
        c = yield from self._peek()
        self._at += len(c)
        if self._held is not None and c:
            self._held.append(c)
            if len(self._held) > _N_HELD_MAX:
                raise _NoCallError
        return c

    def _expect(self, wanted: str) -> Deeds:
        for w in wanted:
            if (yield from self._peek()) != w:
                raise _NoCallError
            yield from self._take()

    def _blanks(self) -> Steps:
        """Skip blanks; returns the character after them, not taken."""
        while (c := (yield from self._peek())) and c in _BLANKS:
            yield from self._take()
        return c

    # ------------------------------------------------------------------ what comes out

    def _emit(self) -> None:
        if self._text:
            text = "".join(self._text)
            self._out.append(Arguments(self.n_calls - 1, text) if self._open else Text(text))
            self._text.clear()

    def _begin(self, name: str) -> None:
        self._emit()
        self._held = None
        self._out.append(Begin(self.n_calls, self._new_id(), name))
        self.n_calls += 1
        self._open = True

    def _finish(self) -> None:
        self._emit()
        self._open = False
        self._out.append(End(self.n_calls - 1))

    # ------------------------------------------------------------------ the answer

    def _answer(self) -> Deeds:
        yield
        marker = self._form.open or _PYTHON_TAG
        if not self._form.open:
            yield from self._try("", self._calls)
        while True:
            blanks = ""
            while (c := (yield from self._peek())) and c in _BLANKS and len(blanks) < _N_BLANKS_MAX:
                blanks += yield from self._take()
            if self.done:
                blanks, c = "", (yield from self._take())
                if c == _END:
                    return
                continue
            if c == _END:
                self._text += [] if self.n_calls else [blanks]
                return
            if c != marker[0]:
                self._text += [blanks, (yield from self._take())]
                yield from self._plain(marker[0])
                continue
            seen = ""
            for wanted in marker:
                if (yield from self._peek()) != wanted:
                    break
                seen += yield from self._take()
            if seen == marker:
                yield from self._try(blanks + seen, self._calls)
            else:
                self._text += [blanks, seen]

    def _plain(self, first: str) -> Deeds:
        """Text up to a blank or what may begin a marker, without looking at each character twice."""
        while (c := (yield from self._peek())) and c != first and c not in _BLANKS:
            self._text.append((yield from self._take()))

    def _try(self, before: str, part: Callable[[], Deeds]) -> Deeds:
        """Run `part`; where it finds no call, what it took (and `before`) becomes text."""
        self._held = [before]
        try:
            yield from part()
        except _NoCallError:
            if self._open:
                self._finish()
            if self._held is not None:
                self._text += self._held
        self._held = None

    def _calls(self) -> Deeds:
        """What follows the marker, or a whole answer that is JSON."""
        c = yield from self._blanks()
        if c == "[":
            yield from self._array()
        elif self._form.layout == "named" or (self._form.layout == "array" and c != "{"):
            yield from self._named()
        else:
            yield from self._object()
            if not self._form.close and self._many:
                yield from self._more()
        if self._form.close:
            yield from self._blanks()
            yield from self._expect(self._form.close.strip())

    def _more(self) -> Deeds:
        """Further calls after a bare one."""
        while True:
            self._held = []
            c = yield from self._blanks()
            if c == ";":
                yield from self._take()
                c = yield from self._blanks()
            if c == _END:
                self._held = None  # blanks at the end say nothing
                return
            if c != "{":
                raise _NoCallError
            yield from self._object()

    def _array(self) -> Deeds:
        yield from self._expect("[")
        while True:
            yield from self._blanks()
            yield from self._object()
            if self.done:
                return
            self._held = []
            c = yield from self._blanks()
            if c != ",":
                yield from self._expect("]")
                self._held = None
                return
            yield from self._take()

    def _named(self) -> Deeds:
        """name[ARGS]{...}, an id between them in some versions."""
        name = ""
        while (c := (yield from self._peek())) and (c.isalnum() or c in "_.-"):
            name += yield from self._take()
        while (yield from self._blanks()) == "[":
            yield from self._take()
            if (yield from self._peek()) == "C":
                yield from self._expect("CALL_ID]")
                while (c := (yield from self._peek())) and c.isalnum():
                    yield from self._take()
            else:
                yield from self._expect("ARGS]")
        if name not in self._names or (yield from self._peek()) != "{":
            raise _NoCallError
        self._begin(name)
        yield from self._value(self._text)
        self._finish()

    def _object(self) -> Deeds:
        """{"name": ..., "arguments": {...}}, keys in any order; others are skipped."""
        yield from self._expect("{")
        head, separator = _Head(), ""
        while (c := (yield from self._blanks())) != "}":
            if separator:
                yield from self._expect(",")
                yield from self._blanks()
            separator = ","
            key = yield from self._string()
            yield from self._blanks()
            yield from self._expect(":")
            c = yield from self._blanks()
            if key == "name" and not head.name:
                head.name = yield from self._string()
                if head.name not in self._names:
                    raise _NoCallError
            elif key in ("arguments", "parameters") and not self._open:
                yield from self._arguments(head, c)
            else:
                yield from self._value([])
        yield from self._expect("}")
        if not head.name:
            raise _NoCallError
        if not self._open:
            self._begin(head.name)
            self._text.append(head.arguments or "{}")
        self._finish()

    def _arguments(self, head: _Head, first: str) -> Deeds:
        """Arguments: an object, or as some models write them, its JSON in a string."""
        if first == "{" and head.name:
            self._begin(head.name)
            yield from self._value(self._text)
            return
        if first not in ("{", '"', "n"):
            raise _NoCallError
        value: list[str] = []
        yield from self._value(value)
        text = "".join(value)
        if first == '"':
            text = _unquoted(text)
        head.arguments = "{}" if first == "n" else text
        if not head.arguments.startswith("{"):
            raise _NoCallError

    def _string(self) -> Steps:
        raw: list[str] = []
        if (yield from self._peek()) != '"':
            raise _NoCallError
        yield from self._value(raw)
        return _unquoted("".join(raw))

    def _value(self, into: list[str]) -> Deeds:
        """One JSON value, its characters added to `into`: brackets and strings are followed, the rest is
        taken as it comes."""
        depth, quoted = 0, False
        while c := (yield from self._peek()):
            if not quoted and depth == 0 and (c in ",]}" or c in _BLANKS):
                return
            into.append((yield from self._take()))
            if c == "\\" and quoted:
                into.append((yield from self._take()))
            elif c == '"':
                quoted = not quoted
            elif not quoted:
                depth += (c in "{[") - (c in "}]")
            if depth == 0 and not quoted and c in '"}]':
                return
        raise _NoCallError  # the text ends inside


def _unquoted(raw: str) -> str:
    """What a JSON string means. Raises _NoCallError where it is none."""
    try:
        value = json.loads(raw)
    except ValueError:
        value = None
    if not isinstance(value, str):
        raise _NoCallError
    return value
