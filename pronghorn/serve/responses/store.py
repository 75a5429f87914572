"""Responses that may be asked for again or continued, in memory, the oldest given up first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

N_KEPT_MAX = 1000
N_BYTES_MAX = 64 << 20  # roughly: the characters of what is kept


@dataclass(frozen=True)
class Kept:
    """owner: the API key that asked; nobody else sees it. messages: the conversation, its answer included,
    without instructions."""

    owner: str
    response: dict[str, Any]
    messages: tuple[dict[str, Any], ...]

    @property
    def size(self) -> int:
        return 1024 + sum(_size(message) for message in self.messages) + _size(self.response)


class Responses:
    """A bounded memory by id."""

    def __init__(self, n_kept: int = N_KEPT_MAX, n_bytes: int = N_BYTES_MAX) -> None:
        self._n_kept, self._n_bytes = n_kept, n_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, kept: Kept) -> None:
        id_ = kept.response["id"]
        self.drop(id_)
        self._kept[id_] = kept
        self._sizes[id_] = kept.size
        self.size += self._sizes[id_]
        while self._kept and (len(self._kept) > self._n_kept or self.size > self._n_bytes):
            self.drop(next(iter(self._kept)))

    def get(self, id_: str, owner: str) -> Kept | None:
        kept = self._kept.get(id_)
        if kept is None or kept.owner != owner:
            return None
        self._kept.move_to_end(id_)
        return kept

    def drop(self, id_: str) -> None:
        if self._kept.pop(id_, None) is not None:
            self.size -= self._sizes.pop(id_)


def _size(value: object) -> int:
    """Characters in plain data, 64 for each part."""
    if isinstance(value, str):
        return 64 + len(value)
    if isinstance(value, dict):
        return 64 + sum(_size(key) + _size(item) for key, item in value.items())
    return 64 + sum(map(_size, value)) if isinstance(value, list) else 64
