"""Cutting text by the scores of tokens (the BPE of SentencePiece, as in Llama 2 and Gemma).

Neighbours merge into a token of the vocabulary, the best score first and the leftmost among equals, until
nothing merges; what is no token by then falls back to its UTF-8 bytes. Written here because a list of
merges for the `tokenizers` library is equivalent only where no token scores better than its parts, and
deriving it looks up every split of every token at load.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence

from pronghorn.errors import CheckpointError

UTF8_BYTES = (*range(0xC0), *range(0xC2, 0xF5))  # bytes that occur in UTF-8


class ScoreEncoder:
    """Encoder of a vocabulary with scores; see the module."""

    def __init__(
        self,
        ids: Mapping[str, int],
        scores: Sequence[float],
        byte_ids: Mapping[int, int],
        unknown: int,
        markup: Mapping[str, int],
        literals: Mapping[str, int],
        prefix_space: bool,
    ) -> None:
        """Hold a vocabulary.

        ids: tokens that merging may make, by text, a space as " ". scores: by id. byte_ids: token of each
        byte. unknown: id for what has no token, -1 when absent. markup: special tokens by text, parsed when
        asked for. literals: tokens that are always cut out whole. prefix_space: a space precedes text.
        Raises CheckpointError where text would be lost: a byte without a token, and no unknown token.
        """
        missing = [byte for byte in UTF8_BYTES if byte not in byte_ids]
        if missing and unknown < 0:
            raise CheckpointError(
                f"the vocabulary has no token for {len(missing)} of the bytes of UTF-8 (first: "
                f"0x{missing[0]:02X}) and no unknown token, so text would be lost; "
                "download the tokenizer again"
            )
        self._ids, self._scores, self._byte_ids = ids, scores, byte_ids
        self._unknown, self._prefix_space = unknown, prefix_space
        self._plain = (_alternatives(literals), dict(literals))
        both = {**literals, **markup}
        self._marked = (_alternatives(both), both)

    def encode(self, text: str, special: bool) -> list[int]:
        """Ids of `text`; see `Encoder`."""
        pattern, whole = self._marked if special else self._plain
        ids: list[int] = []
        for part in pattern.split(text) if whole else [text]:
            if part in whole:
                ids.append(whole[part])
            elif part:
                ids.extend(self._merged(" " + part if self._prefix_space else part))
        return ids

    def _merged(self, text: str) -> list[int]:
        parts = list(text)  # of merged neighbours the left one holds the text, the right one ""
        before, after = list(range(-1, len(parts) - 1)), list(range(1, len(parts) + 1))
        waiting: list[tuple[float, int, str]] = []  # (-score, index of the left part, merged text)

        def offer(left: int, right: int) -> None:
            if left >= 0 and right < len(parts):
                merged = parts[left] + parts[right]
                if (id_ := self._ids.get(merged)) is not None:
                    heapq.heappush(waiting, (-self._scores[id_], left, merged))

        for left in range(len(parts) - 1):
            offer(left, left + 1)
        while waiting:
            _, left, merged = heapq.heappop(waiting)
            right = after[left]
            # An entry is stale once either part has merged with another neighbour.
            if not parts[left] or right >= len(parts) or parts[left] + parts[right] != merged:
                continue
            parts[left], parts[right] = merged, ""
            after[left] = after[right]
            if after[left] < len(parts):
                before[after[left]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [id_ for part in parts if part for id_ in self._tokens(part)]

    def _tokens(self, part: str) -> list[int]:
        if (id_ := self._ids.get(part)) is not None:
            return [id_]
        data = part.encode()
        if all(byte in self._byte_ids for byte in data):
            return [self._byte_ids[byte] for byte in data]
        return [self._unknown]


def _alternatives(texts: Mapping[str, int]) -> re.Pattern[str]:
    """A pattern that captures any of `texts`, the longest first."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
