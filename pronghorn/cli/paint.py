"""An answer as it streams: tokens that a draft had right in another colour, and the closing line."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from pronghorn.cli.ending import printable
from pronghorn.cli.show import size
from pronghorn.types import Origin

if TYPE_CHECKING:
    from pronghorn.llm import Answer, Piece, Stats
    from pronghorn.model.tokenizer import Tokenizer

DRAFTED, DIM, PLAIN = "\x1b[36m", "\x1b[2m", "\x1b[0m"


def has_colour(stream: TextIO) -> bool:
    """Whether to colour: a terminal that can, and nobody objects (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Painter:
    """Writes pieces to stdout. A piece's text may lag behind its tokens (half a character, the start of
    a stop string), so each token's own text is queued with its colour and paid out by length."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.colour = has_colour(sys.stdout)
        self.drafted = False  # whether a token was shown in colour
        self._begun = False
        self._terminal = sys.stdout.isatty()
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._queue: list[tuple[int, bool]] = []  # characters still to come, and whether drafted

    def write(self, piece: Piece) -> None:
        if not self.colour:
            self._put(piece.text)
        else:
            for token, origin in zip(piece.tokens, piece.origins, strict=True):
                text = self._decoder.decode(self._tokenizer.token_bytes(token))
                self._queue.append((len(text), origin is not Origin.MODEL))
            self._put(self._coloured(piece.text))
        sys.stdout.flush()

    def abort(self) -> None:
        """Leave the line that was begun, so that an error stands on its own."""
        if self._begun:
            self.end()

    def end(self) -> None:
        """Finish the line."""
        sys.stdout.write("\n")
        sys.stdout.flush()

    def _put(self, text: str) -> None:
        self._begun |= bool(text)
        sys.stdout.write(text if not self._terminal or self.colour else printable(text))

    def _coloured(self, text: str) -> str:
        out = ""
        lit = False
        while text:
            n, drafted = self._queue.pop(0) if self._queue else (len(text), False)
            part, text = text[:n], text[n:]
            if n > len(part):
                self._queue.insert(0, (n - len(part), drafted))
            if part and drafted != lit:
                out += DRAFTED if drafted else PLAIN
                lit = drafted
            out += printable(part)
            self.drafted |= lit
        return out + (PLAIN if lit else "")


def drafts(stats: Sequence[Stats]) -> str:
    """What was drafted in some answers, and by whom where anybody drafted: accepted of drafted tokens."""
    total: dict[str, tuple[int, int]] = {}
    for who, (drafted, accepted) in ((who, n) for s in stats for who, n in s.drafters.items()):
        had = total.get(who, (0, 0))
        total[who] = had[0] + drafted, had[1] + accepted
    told = f"drafted {sum(s.drafted for s in stats)}, accepted {sum(s.accepted for s in stats)}"
    if not total:
        return told
    by = sorted(total.items(), key=lambda x: -x[1][1])
    if len(by) == 1:
        return f"{told} ({by[0][0]})"
    return told + " (" + ", ".join(f"{who} {right}/{n}" for who, (n, right) in by) + ")"


def closing(answer: Answer, drafted: bool = False) -> str:
    """The receipt on one line. drafted: explain the colour."""
    s = answer.stats
    parts = [
        f"first token {s.first:.3f} s",
        f"{s.rate:.0f} tokens/s" if s.rate else f"{s.new_tokens} tokens",
        f"{s.accepted_length:.2f} tokens a step",
        drafts([s]),
        f"KV {size(s.kv_bytes)} ({s.kv_bytes / s.kv_full:.0%} of full)" if s.kv_full else "",
        f"reused {s.reused_tokens} of {s.prompt_tokens} prompt tokens" if s.reused_tokens else "",
        s.guarantee,
        "cut at the token limit" if answer.finish == "length" else "",
    ]
    text = " · ".join(p for p in parts if p)
    if has_colour(sys.stderr):
        legend = f"{PLAIN} · {DRAFTED}drafted{PLAIN}" if drafted else PLAIN
        return f"{DIM}{text}{legend}"
    return text
