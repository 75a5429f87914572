"""The slots: one protocol per kind of decision. The docstrings are the specification.

A method is one frozen dataclass in `methods/<slot>/<name>.py`; its fields are its only configuration and
`traits` tells the core what it needs. Deciders return plain data; only the core moves bytes. Methods are
stateless: what must be remembered per sequence lives in the state object that `open`-like calls return
or in `seq.memory(self)`, a dict that is the method's own and forks with the sequence.

A class attribute `bare` False: a method is meant only by `slot.name`, as the name alone is another's.

Each slot has a null object in `nulls.py`, so nothing in the core asks whether a method is present.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pronghorn.cost import StepCost
from pronghorn.types import (
    Accept,
    Array,
    Choice,
    Codes,
    Draft,
    Field,
    Ints,
    KVPlan,
    Node,
    Packed,
    Said,
    Selection,
    Span,
    Traits,
)

if TYPE_CHECKING:
    from pronghorn.companion import Companion
    from pronghorn.datastore import Datastore
    from pronghorn.kv.paged import NoPages, Pages
    from pronghorn.kv.store import SeqKV, Store
    from pronghorn.kv.tiers import NoSwap, Swap
    from pronghorn.kv.view import KVView, Scored
    from pronghorn.model.tokenizer import Tokenizer
    from pronghorn.seq import Request, Seq

Bools = NDArray[np.bool_]
Longs = NDArray[np.int64]


class WeightFormat(Protocol):
    """How a weight matrix is stored (load clock). A lossy format has a class attribute `error`: the
    largest error of a weight, in units of the largest magnitude of its row."""

    @property
    def traits(self) -> Traits: ...

    def claims(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether this format stores the matrix `name` of `shape` (n_out, n_in). Vectors are never
        offered. A matrix that no format claims is kept as the checkpoint stores it."""
        ...

    def pack(self, w: NDArray[Any]) -> Packed:
        """w (n_out, n_in), any float dtype. Raises `CheckpointError` when it cannot be stored."""
        ...

    def matmul(self, x: Array, w: Packed, ops: Any) -> Array:
        """x (n, n_in) -> x @ w.T (n, n_out): what the packed form means. `ops` is `ops.ref.Ops`."""
        ...

    def take(self, w: Packed, rows: Array, ops: Any) -> Array:
        """Rows (n,) of the matrix as numbers (n, n_in): how an embedding is read."""
        ...


class KVFormat(Protocol):
    """How sealed KV is stored (load clock). A lossy format has a class attribute `error`: the largest
    error of a value, in units of the largest magnitude of its row.

    open:  dtype of the exact zones: "float32", "bfloat16", or "own" (the runner's own).
    group: rows that must be packed together; 1: any row alone; 0: sealed rows are stored exactly as
           open ones and nothing needs sealing on this format's account. Above 1 `error` is in units of the
           largest magnitude of the page; where the class has `unit` "length", it is the length of a row's
           error in units of the row's own.
    codes: what the codes of keys and of values mean, where fields are those of `layout.coded_fields`: then
           the native runner attends to them. () for other fields.
    """

    @property
    def traits(self) -> Traits: ...
    @property
    def open(self) -> str: ...
    @property
    def group(self) -> int: ...
    @property
    def codes(self) -> tuple[Codes, ...]: ...

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        """Arrays of one page of one head (`page` rows of `dim` values)."""
        ...

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        """k, v (n_pages, page, dim) -> field name -> (n_pages, *field.shape). Pure per page."""
        ...

    def unpack(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        """The inverse of `pack`, up to the format's declared error: rows of `dim` values."""
        ...


@runtime_checkable
class Merging(KVFormat, Protocol):
    """A format in which pages of some layers lie on those of another. It needs all layers to keep the same
    rows (`Traits.rows`), and has a `group` above 1."""

    def under(self, n_layers: int) -> dict[int, int]:
        """By layers whose pages hold no rows of their own: the layer before them, with such, that they lie
        on. Of one head each."""
        ...

    def more(self, page: int, dim: int) -> tuple[Field, ...]:
        """What they have instead of `fields`."""
        ...

    def join(self, fields: dict[str, Array], k: Array, v: Array, ops: Any) -> dict[str, Array]:
        """What pages `fields` become when k, v as in `pack` are laid on them, and `more`."""
        ...

    def part(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        """k, v as in `unpack` of the layer on top, from fields of both."""
        ...


@runtime_checkable
class Asking(KVFormat, Protocol):
    """A format that goes by queries, those of unsealed rows that its traits ask for; its `group` is above 1.
    Where they do not ask for "q.new" it is told at the prompt's end and later only, so that pages inside a
    prompt are those of any text that begins so."""

    def look(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Said:
        """What queries, as `KVPolicy.plan` is shown them, say of what is stored."""
        ...

    def pack_by(self, k: Array, v: Array, rows: Array, channels: Array, ops: Any) -> dict[str, Array]:
        """As `pack`, which is for pages of which no query said anything; rows (n_pages, page) and channels
        (c,) of `Said`. A page that is not full has its last row again, of which 0 is said."""
        ...


class Reuse(Protocol):
    """Which stored rows a new prompt can start from (request clock)."""

    @property
    def traits(self) -> Traits: ...

    def match(self, ids: Sequence[int], rows: int) -> Span | None:
        """Longest stored state usable for a prompt `ids`, at most `rows` rows long. The engine attaches
        it copy-on-write."""
        ...

    def overlap(self, ids: Sequence[int], other: Sequence[int]) -> int:
        """Rows of a prompt `ids` that the state of a prompt `other` can serve once it is stored."""
        ...

    def store(self, ids: Sequence[int], kv: SeqKV, grid: int) -> None:
        """Offer the state of a sequence whose first `kv.length` tokens are `ids`. It may be used up to
        any length from its sealed length on, and below that up to multiples of `grid`. `kv` is a fork
        the method owns: it calls `kv.free()` when it evicts it."""
        ...

    def open(self, store: Store, fingerprint: str, seconds: Callable[[int, int], float]) -> None:
        """Called once, before anything else. fingerprint: of everything that a row's value depends on beside
        the tokens before it; seconds(rows, context): what so many rows of a prompt take behind `context`."""
        ...

    def fresh(self) -> Reuse:
        """Another one with the same options that holds nothing: for the rows of a companion, which stay in
        memory alone."""
        ...

    def shrink(self) -> bool:
        """Memory is short: free the least valuable state. False when none would free anything: nothing is
        held, or only what running sequences hold too."""
        ...

    def tree(self) -> list[Node]:
        """What is held, for people; parents come first."""
        ...

    def disk_counts(self) -> Mapping[str, int]:
        """What happened to records on a disk since `open`, "damaged" among it; empty where none are kept. Any
        thread may ask."""
        ...

    def close(self) -> None:
        """Free everything held."""
        ...


class ConstraintState(Protocol):
    """A walk through a grammar. rollback(advance(x)) is the identity."""

    def mask(self, out: Bools) -> None:
        """out (n_vocab,): set to True where the next token is allowed, False elsewhere. Tokens that end
        the text are allowed exactly when it may end here."""
        ...

    def advance(self, ids: Sequence[int]) -> int:
        """Consume tokens; returns how many were allowed (stops at the first that is not)."""
        ...

    def rollback(self, n: int) -> None:
        """Undo the last `n` consumed tokens."""
        ...

    def fork(self) -> ConstraintState: ...

    def forced(self) -> list[int]:
        """Tokens that must come next, [] when there is a choice."""
        ...

    def done(self) -> bool:
        """Nothing can follow but the end of the text."""
        ...


class Constraint(Protocol):
    """Which texts are allowed (request clock). Walked along every visited branch of a draft tree."""

    @property
    def traits(self) -> Traits: ...
    def open(self, tokenizer: Tokenizer) -> ConstraintState: ...


class Search(Protocol):
    """Several sequences for one request (request clock)."""

    @property
    def traits(self) -> Traits: ...

    def branches(self, request: Request) -> int:
        """Sequences to run, `request.n` or more. They share the prompt's KV and differ in their random
        stream."""
        ...

    def choose(self, seqs: Sequence[Seq]) -> list[int]:
        """Finished branches, best first, given `seq.logprobs` of each: the first `request.n` are the
        answer."""
        ...


class Pruner(Protocol):
    """Prompt positions to keep (request clock)."""

    @property
    def traits(self) -> Traits: ...
    def keep(self, ids: Sequence[int]) -> list[int]:
        """Sorted indices of the prompt tokens to run; the last one must be among them."""
        ...


@dataclass(frozen=True)
class Room:
    """What a scheduler may hand out. rows: rows of one step; kv_rows: rows of KV that no running sequence
    holds (what is stored for reuse gives way); cost: what a step costs on this machine."""

    rows: int
    kv_rows: int
    cost: StepCost = field(default_factory=StepCost)


@dataclass(frozen=True)
class StepPlan:
    """admit: waiting sequences to start, in order; rows: (sequence, prompt rows at most) for every
    running or admitted sequence that takes part in this step. A decoding sequence takes one row, its
    draft comes on top. preempt: running sequences that give up their rows and wait again, before anything
    else; how those come back is the engine's business. seconds: what the step may last; drafts that it has
    no room for are cut, those of the last sequences in `rows` first.

    The engine may hold an admitted sequence back, when a running one is about to store rows that it can
    take: it stays among the waiting ones then."""

    admit: tuple[Seq, ...]
    rows: tuple[tuple[Seq, int], ...]
    preempt: tuple[Seq, ...] = ()
    seconds: float = math.inf


class Scheduler(Protocol):
    """Who runs in a step (step clock)."""

    @property
    def traits(self) -> Traits: ...
    def plan(self, waiting: Sequence[Seq], running: Sequence[Seq], room: Room) -> StepPlan:
        """Must make progress: at least one row whenever a sequence is running or can be admitted."""
        ...


@dataclass(frozen=True)
class DraftRoom:
    """The step that drafts join. rows: draft rows that it takes at most; base, read: rows that it runs
    without them, and KV rows that those read; cost: what a step costs on this machine; stores: the datastores
    in use, by the names that traits give, whose tokens are the model's; models: the companions that the
    engine was started with, by theirs."""

    rows: int = 4096
    base: int = 1
    read: int = 1
    cost: StepCost = field(default_factory=StepCost)
    stores: Mapping[str, Datastore] = field(default_factory=dict)
    models: Mapping[str, Companion] = field(default_factory=dict)


class Drafter(Protocol):
    """Guesses what comes next (step clock). Never changes the output, only its cost."""

    @property
    def traits(self) -> Traits: ...

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        """A draft for each sequence, no deeper than its k (k may be 0). `seq.tokens` ends with the
        pending token, whose KV is not stored yet; a node with parent -1 follows it. Where the step has no
        room for all, the last nodes of the last drafts are cut off. An empty list: it passes this step for
        all of them, and is not told what came."""
        ...

    def observe(
        self, seqs: Sequence[Seq], drafts: Sequence[Draft], accepts: Sequence[Accept],
        taps: Sequence[dict[str, NDArray[Any]]],
    ) -> None:  # fmt: skip
        """After each step in which it did not pass, for the sequences that it proposed for: taps of each
        one's rows (pending token first, then the nodes). `seq.tokens` already ends with the new pending
        token."""
        ...


@runtime_checkable
class Hindsight(Drafter, Protocol):
    """A drafter that can say, for next to nothing, what it would have drafted."""

    def right(self, seq: Seq, n: int) -> int:
        """How many of the text's last n tokens, 64 at most, were the first of the draft that it would have
        proposed just before."""
        ...


class Target(Protocol):
    """The target's view of a draft: row 0 is the pending token, row i + 1 is node i. Everything is
    shaped, masked and normalised on first use, so rows that a walk does not visit cost nothing."""

    temperature: float

    def probs(self, row: int) -> NDArray[np.float64]:
        """(n_vocab,) probabilities of the token after this row."""
        ...

    def soft(self, row: int) -> NDArray[np.float64]:
        """`probs`, but at temperature 0 those of temperature 1: how much it minds other tokens."""
        ...

    def draw(self, row: int) -> int:
        """The token the target emits after this row: argmax at temperature 0, else one draw with the
        random number of that position (the same whatever the draft was)."""
        ...

    def walk(self, draft: Draft) -> Accept:
        """`draft.walk(draw)`."""
        ...

    def uniform(self, row: int, purpose: int) -> float:
        """A number in [0, 1) keyed by sequence, position and purpose (from 1 to 2**32 - 1)."""
        ...

    def memory(self, method: Any) -> dict[str, Any]:
        """`Seq.memory` of the sequence."""
        ...


class Verifier(Protocol):
    """Which drafted tokens stand (step clock)."""

    @property
    def traits(self) -> Traits: ...
    def verify(self, p: Target, draft: Draft) -> Accept: ...


class Shaper(Protocol):
    """Changes logits before sampling (step clock). Pure in `path`, so it replays at every tree node."""

    order: ClassVar[int]  # 0 penalties and biases, 1 temperature, 2 what removes tokens

    @property
    def traits(self) -> Traits: ...
    def shape(self, logits: NDArray[np.float64], path: Ints, n_prompt: int) -> NDArray[np.float64]:
        """logits (n_vocab,) float64, its to change in place; path: all tokens before the one to be
        chosen, the first `n_prompt` of them the prompt. -inf removes a token."""
        ...


class KVPolicy(Protocol):
    """Which stored rows to keep (step clock)."""

    @property
    def traits(self) -> Traits: ...

    def barrier(self, n_prompt: int, length: int) -> int:
        """The next committed length greater than `length` at which `plan` is called, or FOREVER. Pure."""
        ...

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        """Called at a barrier, before open rows are sealed: what it drops is never packed. None keeps all.
        taps: "q" (L, n_heads, r, dim) float32, the queries that its trait asks for, "q_pos" (r,) their
        positions, "q_at" (r,) which token's each is. The row of token i is number n - (length - i) of those
        that a head has, unless it was dropped."""
        ...


class Scorer(KVPolicy, Protocol):
    """A policy that keeps the best rows, as many as a budget says. Its `plan` is `view.plan(self.score(..))`,
    and another policy may give its layers and heads other budgets. Called at a barrier also where nothing is
    over the budget."""

    def score(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Scored: ...


class Residency(Protocol):
    """What stays in memory, and where the rest goes (step clock).

    swaps: rows of preempted sequences have a place (`tier`).
    """

    @property
    def traits(self) -> Traits: ...
    @property
    def swaps(self) -> bool: ...
    def want(self, seen: Longs) -> Longs:
        """Which of the units that were used since the last step are likely to be used again."""
        ...

    def victims(self, n: int, held: Longs, last: Longs) -> Longs:
        """n of `held`, the units in memory, to give up; last: the step in which each was wanted last, 0 for
        those that are not."""
        ...

    def pages(self, store: Store) -> NoPages | Pages:
        """Where rows of sealed pages lie. Called once, before there are any."""
        ...

    def tier(self, store: Store) -> NoSwap | Swap:
        """Where rows of preempted sequences go."""
        ...


class Selector(Protocol):
    """Which sealed pages a query reads (layer clock). What it says is data, which the native runner acts on
    without asking; `select` says what that means, through the array namespace."""

    @property
    def traits(self) -> Traits: ...
    @property
    def dense(self) -> bool:
        """Reads everything: no index is kept and nothing needs sealing on its account."""
        ...

    @property
    def choice(self) -> Choice: ...

    def sources(self, n_layers: int) -> Sequence[int]:
        """By which layer's choice each layer reads: its own number, that of the last layer before it that
        chooses, or -1 where it reads everything. A layer that others name chooses, whatever it reads."""
        ...

    def of(self, tables: Mapping[str, Any], layer: int, head: int) -> Selector:
        """What indexes and chooses pages of this head; tables: those that its traits name, by path."""
        ...

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        """Index arrays kept with each page of each head."""
        ...

    def index(self, k: Array, valid: Array, ops: Any) -> dict[str, Array]:
        """k (n_pages, page, dim), valid (n_pages, page) bool -> field name -> (n_pages, *field.shape)."""
        ...

    def select(self, q: Array, index: dict[str, Array], ops: Any) -> Selection:
        """q (n_rows, g, dim), the g query heads that share a KV head, times the scale of attention; index:
        field name -> (n_pages, *field.shape); where `choice` scores keys also "k" (n_pages, page, dim) and
        "valid" (n_pages, page) bool."""
        ...


class Gate(Protocol):
    """Which part of the model a row runs through (layer clock)."""

    @property
    def traits(self) -> Traits: ...
    def skips(self, n_layers: int) -> Sequence[int]:
        """Layers that no row runs. Such a layer leaves the tape, its weights are not loaded and it
        stores no KV. (Gates that depend on the row's value join this slot with their first method.)"""
        ...
