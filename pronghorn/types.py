"""Plain data that the core, the runners and the methods exchange.

Nothing here has behaviour beyond small checks; nothing imports a method or a runner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pronghorn.ops.codes import Grid

if TYPE_CHECKING:
    from pronghorn.kv.store import SeqKV

Array = Any  # an array of the runner's namespace: numpy.ndarray or torch.Tensor
Ints = NDArray[np.int32]

FOREVER = 1 << 30  # a barrier that never comes


class Guarantee(Enum):
    """What a method promises about the output, against the plain path of the same backend."""

    EXACT = "exact"  # same greedy tokens and same sampled tokens for a seed
    DISTRIBUTION = "distribution"  # same sampling distribution, other random draws
    APPROXIMATE = "approximate"  # quality traded for cost, with a knob

    def weakest(self, other: Guarantee) -> Guarantee:
        order = list(Guarantee)
        return max(self, other, key=order.index)


class Origin(IntEnum):
    """Where a token of an answer came from."""

    MODEL = 0  # the target's own
    DRAFTED = 1  # a draft had it right
    FORCED = 2  # the constraint left no choice


@dataclass(frozen=True)
class Traits:
    """What the core must know of a method. The core reads these, never a method's name.

    taps:      values the method needs: "q.last32" (rotated queries of the last 32 prompt rows, every
               layer), "q.new" (of every row committed since the policy last acted), "q.answer" (of
               those behind the prompt), "q.behind" (of rows that it has run behind stored ones,
               `KVView.behind`), "hidden.3" (residual stream after layer 3; negative counts from the
               end), "top8" (ids of the 8 largest raw logits of every wanted row).
    rows:      the finest unit whose kept KV rows may differ: "seq", "layer" or "head".
    drops:     stored KV shrinks.       moves: logical positions of stored rows change.
    recompute: rows at the end of a reused prefix to run again.
    notes:     numbers that a policy keeps beside each stored row, by name; "bias" is added to the row's
               score in attention (`KVPlan`).
    models:    companion models it needs.
    stores:    files of tokens (`pronghorn.datastore`) that it reads.
    tables:    files of what a model was found to be (`pronghorn.calibrate`) that it reads, of kind `table`.
    greedy:    works only at temperature 0.
    prices:    plans by what steps of a few rows cost (`DraftRoom.cost`), which is measured beforehand.
    """

    guarantee: Guarantee
    taps: tuple[str, ...] = ()
    rows: str = "seq"
    drops: bool = False
    moves: bool = False
    recompute: int = 0
    notes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    table: str = "heads"
    greedy: bool = False
    prices: bool = False


class Rows(NamedTuple):
    """One step: a flat set of rows, prefill chunks, single tokens and draft trees mixed.

    All arrays are int32 of length n. Rows of one sequence are contiguous and topologically ordered.
    """

    ids: Ints  # token ids
    pos: Ints  # logical positions (what rotary and window masks see)
    span: Ints  # context length for length-dependent rotary: max(prompt length, pos + 1)
    seq: Ints  # index into the step's list of sequences
    parent: Ints  # row index of the predecessor in this step, -1: all committed rows and nothing else
    want: Ints  # 1: logits wanted at this row

    @property
    def n(self) -> int:
        return len(self.ids)


class StepOut(NamedTuple):
    """What a runner returns: logits (n_want, n_vocab) float32 (float64 from a float64 runner), and
    taps by name: "q" (n_layers, n_rows, n_heads, d) rotated queries, "hidden.L" and "final" (the head's
    input) (n_rows, width)."""

    logits: NDArray[Any]
    taps: dict[str, NDArray[Any]]


_NONE = np.zeros(0)


class Draft(NamedTuple):
    """A tree of proposed tokens in topological order.

    tokens (n,) int32; parent (n,) int32, index of the parent node, -1 = the last token;
    q (n, n_vocab) what each node was drawn from, given its parent: siblings drawn without replacement repeat
    their parent's distribution; an empty array when nothing was drawn; score (n,) how sure the drafter is of
    each node once its parent stands, in (0, 1), or an empty array; by: name of the method that made it, ""
    for the drafter that hands it in.
    """

    tokens: Ints
    parent: Ints
    q: NDArray[Any] = np.zeros((0, 0))
    score: NDArray[Any] = _NONE
    by: str = ""

    @property
    def n(self) -> int:
        return len(self.tokens)

    def levels(self) -> list[int]:
        """Depth of each node, children of the last token at 1."""
        depth: list[int] = []
        for p in self.parent.tolist():
            depth.append(1 if p < 0 else depth[p] + 1)
        return depth

    def depths(self) -> Ints:
        """`levels` as an array."""
        return np.array(self.levels(), np.int32)

    def clip(self, max_depth: int) -> Draft:
        """The nodes no deeper than `max_depth`."""
        if self.n <= max_depth:
            return self
        levels = self.levels()
        if max(levels, default=0) <= max_depth:
            return self
        return self.only(np.flatnonzero(np.array(levels) <= max_depth))

    def head(self, n: int) -> Draft:
        """The first n nodes."""
        return self if self.n <= n else self.only(np.arange(max(n, 0)))

    def only(self, keep: NDArray[Any]) -> Draft:
        """The nodes with the sorted indices `keep`, to which the parent of each must belong."""
        new = np.full(self.n, -1, np.int32)
        new[keep] = np.arange(len(keep), dtype=np.int32)
        parent = self.parent[keep]
        parent = np.where(parent < 0, -1, new[parent]).astype(np.int32)
        q = self.q[keep] if len(self.q) else self.q
        score = self.score[keep] if len(self.score) else self.score
        return Draft(self.tokens[keep], parent, q, score, self.by)

    def walk(self, choose: Callable[[int], int]) -> Accept:
        """From the last token go to the child that holds what is chosen there, for as long as there is
        one. choose: row (0 the last token, i + 1 node i) -> token; of equal siblings the first counts."""
        if not len(self.tokens):
            return Accept([], choose(0))
        child: dict[tuple[int, int], int] = {}
        for i, key in enumerate(zip(self.parent.tolist(), self.tokens.tolist(), strict=True)):
            child.setdefault(key, i)
        path: list[int] = []
        node = -1
        while True:
            token = choose(node + 1)
            if (node, token) not in child:
                return Accept(path, token)
            node = child[node, token]
            path.append(node)

    @staticmethod
    def chain(tokens: Any, score: NDArray[Any] = _NONE) -> Draft:
        ids = np.asarray(tokens, np.int32)
        return Draft(ids, np.arange(-1, len(ids) - 1, dtype=np.int32), score=score)

    @staticmethod
    def empty() -> Draft:
        return _EMPTY


_EMPTY = Draft(np.zeros(0, np.int32), np.zeros(0, np.int32))


class Accept(NamedTuple):
    """Nodes kept, root to leaf, and the token that the target adds after them."""

    path: list[int]
    bonus: int


BIAS = "bias"  # the note that attention adds to a row's score


class Rewrite(NamedTuple):
    """New values of some rows that are kept: sorted indices rows (m,) into the group's rows before the plan,
    k, v (m, members of the group, dim); keys rotated to the rows' positions."""

    rows: Ints
    k: NDArray[Any]
    v: NDArray[Any]


class Said(NamedTuple):
    """What queries say to a format (`slots.Asking`): rows (L, H, n), 0 or more, of each stored row of a head,
    sealed ones first; channels (L, H, c), numbers of a head."""

    rows: NDArray[Any]
    channels: NDArray[Any]


UNSAID = Said(np.zeros((0, 0, 0)), np.zeros((0, 0, 0)))


@dataclass(frozen=True)
class KVPlan:
    """What a policy wants done with a sequence's rows. Indices count them as they are before it: sealed ones,
    then open ones.

    keep: group -> sorted indices of the rows that stay; a group that is not named keeps all. values: group ->
    what becomes of rows that stay. notes: name -> (layers, heads, n) float32 for every row, in place of what
    was noted before.
    """

    keep: dict[int, Ints] = field(default_factory=dict)
    values: dict[int, Rewrite] = field(default_factory=dict)
    notes: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Span:
    """A reusable state: the first `n` rows of `kv`, which start at position `at` of the prompt (0: a
    prefix). exact: equal, bit for bit, to what running the prompt would store."""

    n: int
    kv: SeqKV
    at: int = 0
    exact: bool = True


@dataclass(frozen=True)
class Node:
    """A run of rows that a reuse method stores, and where it goes on from.

    tokens: the first of its run, 32 at most; rows: of the whole run; bytes: of pages that the parent does not
    hold; users: running sequences on it; last_used: time.monotonic().
    """

    id: int
    parent: int  # 0: none
    tokens: tuple[int, ...]
    rows: int
    bytes: int
    hits: int
    users: int
    last_used: float
    on_disk: bool


class Selection(NamedTuple):
    """Sealed pages that each query row reads: pages (n_rows, n_pages) bool."""

    pages: Array


@dataclass(frozen=True)
class Choice:
    """How the sealed pages that a query reads are chosen, as data that a runner acts on by itself. A page's
    score for a query head is the largest of its

    bounds: boxes, fields "lo" and "hi" (n, dim): what q . k can be at most for a key inside;
    dots:   vectors, field "mean" (n, dim): q . mean;
    labels: rows, of which some channels are kept: fields "channel" (n,) uint8, "label" (n, rows) int8 and
            "unit" (n,) float32, which a label is in units of;
    keys:   rows, q . k of the keys themselves;
    codes:  rows, of which codes are kept: field "code" (n, rows) uint8, entries of n tables of what centroids
            have with q, which are the head's (`calibrate.codebooks.Books`).

    score: one of these. heads: what the query heads that share a KV head make of their scores: "max", "sum",
    or "vote", the sum of each head's softmax over the pages. pages: read, whole ones; first, last: so many at
    the beginning and at the end are always among them; span: neighbours that are read together, by the
    largest score of any; `first` and `last` count such spans then. cover: below 1, only as many of
    the best as it takes for this share of the sum of all scores (votes). Scores are rounded to 1/4096 of the
    largest magnitude, and ties go to the earlier page.

    keep: "" or what rows do for which nothing is kept, "all": read everything, or "own": choose for
    themselves. Behind a barrier the first row of an answer chooses, and keeps its choice and its queries up
    to the next barrier; a row whose queries in a layer have a cosine of at least `like` with those, over all
    heads and on a grid of 1/1024, reads by it. The row itself is one for which nothing is kept.
    """

    score: str = "bounds"
    pages: int = 1
    heads: str = "max"
    first: int = 0
    last: int = 0
    span: int = 1
    cover: float = 1.0
    keep: str = ""
    like: float = -2.0


class Field(NamedTuple):
    """One array inside a page of one head: `shape` for a page; dtype as NumPy spells it.
    `rows` is the axis that runs over the page's rows, or -1 when the field is one per page."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: int = 0


@dataclass(frozen=True)
class Codes:
    """What the codes of a page's keys, or of its values, mean: a value is scale * level + offset.

    bits: of a code, 2, 4 or 8. group: channels of a row that share a scale and an offset, a multiple of 32
    (`ROW`: all); 0: those are a channel's, for all rows of the page. offset: whether there is one. levels: of
    each code; empty: a code is its own level, or E4M3 where it has 8 bits. channels: each channel's values
    are multiplied by a factor of its own in the end. turn: rows were turned before, by signs and Hadamard's
    matrix (`methods.kvfmt._codes.turn`). Factors are bfloat16.
    rank: 1 or 2, of a matrix (rows, channels) that is added, where codes are their own levels. spikes: share
    of a page's numbers that stand by themselves there, whatever codes say. bits 16 (group 0, no offset): no
    codes but bfloat16 numbers; kept: share of the channels of those that a page has, the others being 0.
    salient: rows of a page whose codes, of 2 bits and their own levels, have 2 more, the lower ones: a level
    is 4 * code + those, and 5 * code in the other rows.
    """

    bits: int
    group: int
    offset: bool = True
    levels: tuple[float, ...] = ()
    channels: bool = False
    turn: bool = False
    rank: int = 0
    spikes: float = 0.0
    kept: float = 1.0
    salient: int = 0


ROW = 1 << 16  # a group of all channels


@dataclass(frozen=True)
class Packed:
    """A weight as a format stores it. `kind` names the layout that a runner's kernel reads;
    `shape` is the logical (n_out, n_in); `fields` the arrays; `grid` what codes mean where there are
    codes (`ops.codes`)."""

    kind: str
    shape: tuple[int, ...]
    fields: dict[str, Array] = field(default_factory=dict)
    grid: Grid | None = None

    @property
    def nbytes(self) -> int:
        return sum(int(a.nbytes) for a in self.fields.values())
