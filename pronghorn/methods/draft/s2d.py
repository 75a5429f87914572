"""Sorted speculative decoding (Kavehzadeh et al., 2024, arXiv 2407.01955): a drafter whose first layers are
drafters themselves. A token is drafted by the fewest layers that are sure of it.

A checkpoint that was not trained so (SortedNet, LayerSkip) has poor early exits: see what it gains first.

Departure: each exit reads rows of all its own layers. Where the model drafts for itself these are the rows of
accepted tokens, which the whole model has stored; the draft's tokens before run again with the later exit, a
few rows in a step. So no layer misses rows of tokens that left early, and `q` is of the exit that drew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from pronghorn.errors import MethodError, RequestError
from pronghorn.methods.draft._companion import Chain, Style, chance, check, companion, depths
from pronghorn.methods.draft._single import Fixed
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Draft, Guarantee, Traits


@dataclass(frozen=True)
class S2d(Fixed):
    exits: tuple[int, ...] = (1,)  # layers that run up to each exit, fewest first
    sure: float = 0.6  # an exit less sure of its token than this leaves it to the next
    length: int = 5  # drafted tokens at most
    stop: float = 0.7  # end a chain once the chance of a wrong token exceeds this; 1: never
    model: str = "self"  # whose layers they are
    sample: bool = False  # draw tokens at random and hand their distributions on, for verifiers that reject

    def __post_init__(self) -> None:
        check("s2d", self.length, self.stop, self.sure)
        if not self.exits or min(self.exits) < 1 or sorted(set(self.exits)) != list(self.exits):
            raise MethodError(f"s2d: exits are numbers of layers from 1 that rise, not {list(self.exits)}")

    @property
    def _models(self) -> tuple[str, ...]:
        return tuple(f"{self.model}:exit={n}" for n in self.exits)

    @property
    def traits(self) -> Traits:
        return Traits(Guarantee.EXACT, models=self._models)

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        models = [companion(room, name) for name in self._models]
        style = Style(self.length, self.stop, sample=self.sample)
        deep = depths(k, self.length, room)
        some = [i for i, d in enumerate(deep) if d]
        able = [m.sync([seqs[i] for i in some]) for m in models]
        most = [min(n) for n in zip(*able, strict=True)]
        every = {i: Chain(seqs[i], min(deep[i], n)) for i, n in zip(some, most, strict=True) if n}
        live = list(every.values())
        while live:
            going: list[Chain] = []
            left = live
            for at, model in enumerate(models):
                trees = [Draft.chain(c.tokens) for c in left]
                rows = [r[-1] for r in model.tree([c.seq for c in left], trees)]
                later = []
                for c, row in zip(left, rows, strict=True):
                    if at + 1 < len(models) and not self._sure(c, row, model.tokenizer):
                        later.append(c)
                    elif c.grow(row, style, model.tokenizer):
                        going.append(c)
                left = later
                if not left:
                    break
            live = going
        return [every[i].draft() if i in every else Draft.empty() for i in range(len(seqs))]

    def _sure(self, chain: Chain, row: NDArray[Any], tokenizer: Any) -> bool:
        """By the likeliest token, which tells nothing of the one that is drawn."""
        p = chain.look(row, tokenizer)
        try:
            best = int(row[: p.n_tokens].argmax())
            return chance(p, len(chain.tokens), best) >= self.sure
        except RequestError:
            return True
