"""Where the end of a text has stood before: an index of runs of tokens over growing texts.

A suffix tree answers the same question with a node for every run that ever occurred. Here runs of four
lengths are kept, each linked to its last occurrence before, and how far a match goes beyond its run is found
by comparing tokens: work and memory per token are constant, and a whole text can be taken out again.
"""

from __future__ import annotations

from array import array

SIZES = (8, 4, 2, 1)  # lengths of the runs that are indexed
LONGEST = 32  # a match is followed back so far
ALONE = 4  # runs that are at least so long are not mixed with shorter ones

_BITS = 32
_MASK = (1 << _BITS) - 1


# (match, text, at): the last `match` tokens stand right before `at` in `text`
Place = tuple[int, list[int], int]


class Suffixes:
    """Texts by number, and the places of their runs, each linked to the one before it."""

    def __init__(self) -> None:
        self.texts: dict[int, list[int]] = {}
        self._last: tuple[dict[int, int], ...] = tuple({} for _ in SIZES)  # hash of a run -> its last place
        self._before: dict[int, tuple[array[int], ...]] = {}  # of each place: the place before with that run

    def add(self, number: int, text: list[int]) -> None:
        """Take a text in, as it is; it may grow."""
        self.texts[number] = text
        self._before[number] = tuple(array("q") for _ in SIZES)
        self.grown(number)

    def grown(self, number: int) -> None:
        """Index what a text got since. A place needs a token that stands there, so the text's end is none."""
        text, base = self.texts[number], number << _BITS
        for size, last, before in zip(SIZES, self._last, self._before[number], strict=True):
            for at in range(len(before), len(text)):
                if at < size:
                    before.append(-1)
                else:
                    key = hash(tuple(text[at - size : at]))
                    before.append(last.get(key, -1))
                    last[key] = base + at

    def drop(self, number: int) -> None:
        """Take a text out."""
        text, gone = self.texts.pop(number), self._before.pop(number)
        for size, last, before in zip(SIZES, self._last, gone, strict=True):
            for at in range(len(before) - 1, size - 1, -1):
                key = hash(tuple(text[at - size : at]))
                place = last.get(key, -1)
                if place >> _BITS == number:
                    while place >> _BITS == number:
                        place = before[place & _MASK]
                    if place >> _BITS in self._before:
                        last[key] = place
                    else:
                        del last[key]

    def find(self, tokens: list[int], most: int) -> list[Place]:
        """The last `most` places where the end of `tokens` stood, longest runs first and newest first among
        these. Runs shorter than one that was found are looked at only where that one is short itself."""
        n = len(tokens)
        out: list[Place] = []
        texts = self.texts
        far = tokens[n - LONGEST :] if n >= LONGEST else []
        longer = LONGEST + 1  # matches of so many tokens are there already
        for level, size in enumerate(SIZES):
            if n < size:
                continue
            run = tokens[n - size :]
            place = self._last[level].get(hash(tuple(run)), -1)
            while place >= 0 and len(out) < most:
                number, at = place >> _BITS, place & _MASK
                text = texts.get(number)
                if text is None:  # what lies beyond a text that was taken out is lost with it
                    break
                if text[at - size : at] == run:  # a hash may lie
                    if at >= LONGEST and text[at - LONGEST : at] == far:
                        match = LONGEST
                    else:
                        match, stop = size, min(at, n, longer)
                        while match < stop and text[at - match - 1] == tokens[n - match - 1]:
                            match += 1
                    if match < longer:
                        out.append((match, text, at))
                place = self._before[number][level][at]
            if out:
                if size >= ALONE:
                    break
                longer = size
        return out
