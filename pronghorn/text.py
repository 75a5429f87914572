"""From tokens to the text a caller sees: whole characters only, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pronghorn.model.tokenizer import Tokenizer


class TextStream:
    """Feed tokens, get text that continues the text of `before`.

    Text that may be the start of a stop string is held back until it is not.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        before: Sequence[int],
        shown: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """shown: special tokens that are text here."""
        from pronghorn.model.detokenize import Detokenizer

        self._detok = Detokenizer(tokenizer, shown)
        for token in before[-4:]:  # a character is at most four tokens; a first space is not the text's first
            self._detok.push(token)
        self._stops = [s for s in stops if s]
        self._held = ""
        self.text = ""  # all text given out
        self.stopped = False

    def push(self, token: int) -> str:
        """New text that is certain. Sets `stopped` when a stop string is complete."""
        if self.stopped:
            return ""
        return self._give(self._detok.push(token), last=False)

    def flush(self) -> str:
        """What was still held, at the end."""
        if self.stopped:
            return ""
        return self._give(self._detok.flush(), last=True)

    def _give(self, new: str, last: bool) -> str:
        if not self._stops:
            self.text += new
            return new
        text = self._held + new
        found = [i for s in self._stops if (i := text.find(s)) >= 0]
        if found:
            self.stopped = True
            text, self._held = text[: min(found)], ""
        else:
            keep = 0 if last else max((_overlap(text, s) for s in self._stops), default=0)
            cut = len(text) - keep
            text, self._held = text[:cut], text[cut:]
        self.text += text
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that starts `stop`."""
    for n in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
