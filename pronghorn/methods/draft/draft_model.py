"""Speculative sampling's drafter (Leviathan et al., 2023, arXiv 2211.17192; Chen et al., 2023,
arXiv 2302.01318): a smaller model writes the next tokens, which the answering model then checks at once.

Any checkpoint serves. One with another vocabulary too: tokens with equal texts stand for each other, and what
has no equal is never drafted, so that its share of the chance goes to the others before anything is drawn.
What is drafted follows the request's own shapers, constraint and temperature.

`stop` ends a chain early, with the likelihood of its tokens in place of SpecDec++'s trained head (Huang et
al., 2024, arXiv 2405.19715): once the chance that one of them is wrong exceeds it. The token after that is
not drawn, so that the choice tells nothing of it. With `sample` tokens are drawn at random and go with their
distributions, for verifiers that reject; without it they are fixed, for those that match. Trees (`_trees`)
are drawn but for "best".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pronghorn.errors import MethodError
from pronghorn.methods.draft._companion import Style, chains, check, companion, trees
from pronghorn.methods.draft._single import Fixed
from pronghorn.methods.draft._trees import KINDS
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Draft, Guarantee, Traits


@dataclass(frozen=True)
class DraftModel(Fixed):
    model: str  # the model that drafts: a name, folder or file, with `:weight=int8` and the like behind it
    length: int = 5  # drafted tokens after one another at most
    stop: float = 0.7  # end a chain once the chance of a wrong token exceeds this; 1: never
    sample: bool = False  # draw a chain at random and hand its distributions on, for verifiers that reject
    tree: str = (
        "chain"  # or best, rsd-c, rsd-s, sequoia, multi: trees, which neither `stop` nor `sample` touch
    )
    nodes: int = 16  # tokens of a tree

    def __post_init__(self) -> None:
        check("draft-model", self.length, self.stop)
        if self.tree not in KINDS:
            raise MethodError(f"draft-model: tree is one of {', '.join(KINDS)}, not {self.tree!r}")
        if not 1 <= self.nodes <= 1024:
            raise MethodError(f"draft-model: nodes is from 1 to 1024, not {self.nodes}")

    @property
    def traits(self) -> Traits:
        return Traits(Guarantee.EXACT, models=(self.model,))

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        model = companion(room, self.model)
        if self.tree != "chain":
            return trees(model, seqs, k, room, self.tree, self.nodes, self.length)
        return chains(model, seqs, k, room, Style(self.length, self.stop, sample=self.sample))
