"""The null object of each slot: what the engine does where nobody decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.paged import NoPages
from pronghorn.kv.tiers import NoSwap
from pronghorn.ops.values import dense
from pronghorn.slots import Bools, ConstraintState, DraftRoom, Longs, Room, StepPlan, Target
from pronghorn.types import (
    FOREVER,
    Accept,
    Array,
    Choice,
    Draft,
    Field,
    Guarantee,
    KVPlan,
    Node,
    Packed,
    Selection,
    Span,
    Traits,
)

if TYPE_CHECKING:
    from pronghorn.kv.paged import Pages
    from pronghorn.kv.store import SeqKV, Store
    from pronghorn.kv.tiers import Swap
    from pronghorn.kv.view import KVView
    from pronghorn.model.tokenizer import Tokenizer
    from pronghorn.seq import Request, Seq

EXACT = Traits(Guarantee.EXACT)


@dataclass(frozen=True)
class AsStored:
    """Weights in the checkpoint's own dtype."""

    traits = EXACT

    def claims(self, name: str, shape: tuple[int, ...]) -> bool:
        return True

    def pack(self, w: NDArray[Any]) -> Packed:
        own = w.dtype.name in ("bfloat16", "float16", "float32")
        return Packed(w.dtype.name if own else "float32", w.shape, {"w": w if own else w.astype(np.float32)})

    def matmul(self, x: Array, w: Packed, ops: Any) -> Array:
        return ops.matmul(x, ops.cast(w.fields["w"]))

    def take(self, w: Packed, rows: Array, ops: Any) -> Array:
        return ops.cast(w.fields["w"][rows])


@dataclass(frozen=True)
class AsCoded:
    """Matrices that a checkpoint holds as small integers or in fp8, as they are."""

    traits = EXACT

    def claims(self, name: str, shape: tuple[int, ...]) -> bool:
        return True

    def pack(self, w: NDArray[Any]) -> Packed:
        raise NotImplementedError("what is not coded yet is another format's")

    def matmul(self, x: Array, w: Packed, ops: Any) -> Array:
        return ops.matmul(x, ops.cast(ops.array(dense(w))))

    def take(self, w: Packed, rows: Array, ops: Any) -> Array:
        return ops.cast(ops.array(dense(w)))[rows]


@dataclass(frozen=True)
class ExactKV:
    """Sealed KV stored like open KV, in the runner's own dtype."""

    traits = EXACT
    open = "own"
    group = 0
    codes = ()

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        raise NotImplementedError("an exact format takes the open zone's layout")

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        raise NotImplementedError("an exact format takes the open zone's layout")

    def unpack(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        raise NotImplementedError("an exact format takes the open zone's layout")


@dataclass(frozen=True)
class NoReuse:
    traits = EXACT

    def match(self, ids: Sequence[int], rows: int) -> Span | None:
        return None

    def overlap(self, ids: Sequence[int], other: Sequence[int]) -> int:
        return 0

    def store(self, ids: Sequence[int], kv: SeqKV, grid: int) -> None:
        kv.free()

    def open(self, store: Store, fingerprint: str, seconds: Callable[[int, int], float]) -> None: ...

    def fresh(self) -> NoReuse:
        return self

    def shrink(self) -> bool:
        return False

    def tree(self) -> list[Node]:
        return []

    def disk_counts(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None: ...


class Free:
    def mask(self, out: Bools) -> None:
        out[:] = True

    def advance(self, ids: Sequence[int]) -> int:
        return len(ids)

    def rollback(self, n: int) -> None: ...

    def fork(self) -> ConstraintState:
        return self

    def forced(self) -> list[int]:
        return []

    def done(self) -> bool:
        return False


@dataclass(frozen=True)
class NoConstraint:
    traits = EXACT

    def open(self, tokenizer: Tokenizer) -> ConstraintState:
        return Free()


@dataclass(frozen=True)
class OneBranch:
    traits = EXACT

    def branches(self, request: Request) -> int:
        return request.n

    def choose(self, seqs: Sequence[Seq]) -> list[int]:
        return list(range(len(seqs)))


@dataclass(frozen=True)
class KeepPrompt:
    traits = EXACT

    def keep(self, ids: Sequence[int]) -> list[int]:
        return list(range(len(ids)))


@dataclass(frozen=True)
class NoDraft:
    traits = EXACT
    slot = "draft"  # so that it can be asked for, against the default

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        return []

    def observe(
        self, seqs: Sequence[Seq], drafts: Sequence[Draft], accepts: Sequence[Accept],
        taps: Sequence[dict[str, NDArray[Any]]],
    ) -> None:  # fmt: skip
        pass


@dataclass(frozen=True)
class KeepAll:
    traits = EXACT

    def barrier(self, n_prompt: int, length: int) -> int:
        return FOREVER

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        return None


@dataclass(frozen=True)
class AllResident:
    traits = EXACT
    swaps = False

    def want(self, seen: Longs) -> Longs:
        return seen

    def victims(self, n: int, held: Longs, last: Longs) -> Longs:
        return held[:n]

    def pages(self, store: Store) -> NoPages | Pages:
        return NoPages()

    def tier(self, store: Store) -> NoSwap | Swap:
        return NoSwap()


@dataclass(frozen=True)
class Dense:
    traits = EXACT
    dense = True
    choice = Choice()

    def sources(self, n_layers: int) -> Sequence[int]:
        return (-1,) * n_layers

    def of(self, tables: Any, layer: int, head: int) -> Dense:
        return self

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return ()

    def index(self, k: Array, valid: Array, ops: Any) -> dict[str, Array]:
        return {}

    def select(self, q: Array, index: dict[str, Array], ops: Any) -> Selection:
        raise NotImplementedError("a dense selector never selects")


@dataclass(frozen=True)
class WholeModel:
    traits = EXACT

    def skips(self, n_layers: int) -> Sequence[int]:
        return ()


@dataclass(frozen=True)
class OwnToken:
    """No drafted token stands; the target's own token does."""

    traits = EXACT

    def verify(self, p: Target, draft: Draft) -> Accept:
        return Accept([], p.draw(0))


@dataclass(frozen=True)
class InOrder:
    """Everybody runs, whole prompts, as far as the step's rows go."""

    traits = EXACT

    def plan(self, waiting: Sequence[Seq], running: Sequence[Seq], room: Room) -> StepPlan:
        admit, rows = [], []
        left, kv = room.rows, room.kv_rows - sum(s.need - s.held for s in running)
        for seq in waiting:
            if seq.need > kv:
                break
            admit.append(seq)
            kv -= seq.need
        for seq in [*running, *admit]:
            n = min(left, len(seq.tokens) - seq.kv.length)
            if n:
                rows.append((seq, n))
                left -= n
        return StepPlan(tuple(admit), tuple(rows))
