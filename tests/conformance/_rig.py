"""Sequences, targets and a small model for the suites."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from pronghorn import rng
from pronghorn.companion import Companion, Head
from pronghorn.kv.store import SeqKV, Store
from pronghorn.model.bind import Bound, bind
from pronghorn.model.rope import Rope
from pronghorn.model.tape import Param, Tape
from pronghorn.nulls import Dense, ExactKV, Free
from pronghorn.ops.ref import Ops
from pronghorn.run.ref import RefRunner
from pronghorn.seq import Request, Seq
from pronghorn.types import FOREVER, Accept, Draft, Rows, StepOut

N_VOCAB = 32


def sequence(
    tokens: list[int], n_prompt: int | None = None, kv: Any = None, number: int = 0, max_tokens: int = 64
) -> Seq:
    """A sequence as a method sees it; without `kv`, one whose last token is pending."""
    n_prompt = len(tokens) if n_prompt is None else n_prompt
    if kv is None:
        kv = SimpleNamespace(length=len(tokens) - 1, n_rows=len(tokens) - 1)
    request = Request(tuple(tokens[:n_prompt]), max_tokens)
    return Seq(number, request, list(tokens), n_prompt, kv, Free())


class TableCompanion(Companion):
    """A companion whose logits are a row of `truth` (n_vocab, n_vocab) for the token before."""

    def __init__(self, truth: Any) -> None:
        self.truth, self.n_vocab = np.asarray(truth, np.float32), len(truth)
        self.tokenizer = SimpleNamespace(n_vocab=self.n_vocab, eos=())  # type: ignore[assignment]

    def sync(self, seqs: Sequence[Seq], heads: Sequence[Head] = ()) -> list[int]:
        return [1 << 20 for _ in seqs]

    def tree(self, seqs: Sequence[Seq], trees: Sequence[Draft]) -> list[Any]:
        return [self.truth[[s.tokens[-1], *t.tokens]] for s, t in zip(seqs, trees, strict=True)]

    def follow(self, seqs: Sequence[Seq], tokens: Sequence[int]) -> list[Any]:
        return [self.truth[t] for t in tokens]


class TableTarget:
    """A `slots.Target` over the token distributions of each row, with the engine's random stream."""

    def __init__(self, probs: Any, depth: Any, temperature: float = 1.0, seed: int = 0) -> None:
        self.rows = np.asarray(probs, np.float64)  # (1 + n_nodes, n_vocab)
        self.depth = [0, *(int(d) for d in depth)]
        self.temperature, self.seed = temperature, seed
        self.asked: list[int] = []
        self.kept: dict[str, Any] = {}

    def probs(self, row: int) -> Any:
        return self.rows[row]

    def soft(self, row: int) -> Any:
        return self.rows[row]

    def memory(self, method: Any) -> dict[str, Any]:
        return self.kept

    def draw(self, row: int) -> int:
        self.asked.append(row)
        if self.temperature == 0:
            return int(np.argmax(self.rows[row]))
        total = np.cumsum(self.rows[row])
        u = rng.uniform(self.seed, 0, self.depth[row], rng.DRAW)
        return int(np.searchsorted(total / total[-1], u, side="right"))

    def walk(self, draft: Draft) -> Accept:
        return draft.walk(self.draw)

    def uniform(self, row: int, purpose: int) -> float:
        return rng.uniform(self.seed, 0, self.depth[row], purpose)


def random_draft(r: np.random.Generator, n: int, n_vocab: int = N_VOCAB) -> Draft:
    """A tree in topological order; siblings may repeat a token."""
    parent = [int(r.integers(-1, i)) if i else -1 for i in range(n)]
    return Draft(r.integers(0, n_vocab, n).astype(np.int32), np.asarray(parent, np.int32))


def check_draft(draft: Draft, k: int, n_vocab: int) -> None:
    """What the core relies on."""
    assert draft.tokens.dtype == np.int32
    assert draft.parent.dtype == np.int32
    assert draft.tokens.shape == draft.parent.shape == (draft.n,)
    assert ((draft.tokens >= 0) & (draft.tokens < n_vocab)).all()
    assert ((draft.parent >= -1) & (draft.parent < np.arange(draft.n))).all()
    assert draft.n == 0 or draft.depths().max() <= k
    pairs = list(zip(draft.parent.tolist(), draft.tokens.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs), "two siblings hold the same token"


# ------------------------------------------------------------------------------- a small model


def weights(
    seed: int = 0, n_layers: int = 3, n_heads: int = 4, n_kv: int = 2, dim: int = 8, gain: float = 2.5
) -> tuple[Tape, dict[str, Any]]:
    """A Llama-shaped model with random weights, `gain` large enough for uneven attention."""
    r = np.random.default_rng(seed)
    width, inner = n_heads * dim, 48
    tensors: dict[str, Any] = {}

    def mat(name: str, n_out: int, n_in: int, by: float = 1.0) -> Param:
        tensors[name] = (by * r.standard_normal((n_out, n_in)) / np.sqrt(n_in)).astype(np.float32)
        return Param(name, (n_out, n_in))

    def vec(name: str, n: int) -> Param:
        tensors[name] = (1 + 0.1 * r.standard_normal(n)).astype(np.float32)
        return Param(name, (n,))

    t = Tape(n_layers, n_heads, n_kv, dim, N_VOCAB, 4096)
    rope = t.rope_table(Rope(dim, 10000.0))
    table = mat("embed", N_VOCAB, width, 4.0)
    x = t.embed(table)
    for i in range(n_layers):
        t.begin(i, x)
        h = t.norm(x, vec(f"{i}.n1", width), 1e-6)
        q = t.rope(t.linear(h, mat(f"{i}.q", n_heads * dim, width, gain)), rope, n_heads)
        k = t.rope(t.linear(h, mat(f"{i}.k", n_kv * dim, width, gain)), rope, n_kv)
        v = t.linear(h, mat(f"{i}.v", n_kv * dim, width))
        x = t.add(x, t.linear(t.attend(q, k, v, dim**-0.5), mat(f"{i}.o", width, n_heads * dim)))
        h = t.norm(x, vec(f"{i}.n2", width), 1e-6)
        up = t.glu(
            t.linear(h, mat(f"{i}.gate", inner, width)), t.linear(h, mat(f"{i}.up", inner, width)), "silu"
        )
        x = t.end(t.add(x, t.linear(up, mat(f"{i}.down", width, inner))))
    t.head(t.norm(x, vec("norm", width), 1e-6), table)
    return t, tensors


def small(formats: Sequence[Any] = (), skips: Sequence[int] = (), **shape: Any) -> Bound:
    """`weights(**shape)` bound, rotated queries tapped."""
    tape, tensors = weights(**shape)
    return bind(tape, tensors, formats, skips, ("q.last1",))


class Small:
    """One sequence of the small model, driven as the engine drives it: chunks and steps are cut at the
    policy's barriers, where everything is sealed and the policy is asked."""

    def __init__(
        self, bound: Bound, policy: Any = None, fmt: Any = None, selector: Any = None,
        ops: Ops | None = None,
    ) -> None:  # fmt: skip
        self.bound, self.policy = bound, policy
        fmt, selector = fmt or ExactKV(), selector or Dense()
        self.ops = ops or Ops("float64")
        rows = policy.traits.rows if policy else "seq"
        dtype = self.ops.name if fmt.open == "own" else fmt.open
        self.store = Store(
            self.ops, bound.n_layers, bound.n_kv, bound.head_dim, dtype, fmt, selector, rows,
            list(bound.kv_ropes),
        )  # fmt: skip
        self.runner = RefRunner(bound, self.store)
        self.kv: SeqKV = self.store.new()
        self.plans: list[tuple[int, Any]] = []  # committed length and plan of each barrier
        self.seal_every = 0  # seal also where there is no policy
        self.seed = 0  # of the request
        self.ids: list[int] = []
        self.queries: list[tuple[int, Any, Any]] = []  # not seen by the policy: first row, positions, queries

    def behind(self, kv: SeqKV, ids: Any, n_prompt: int) -> dict[str, Any]:
        """See `view.Runs`."""
        pos = kv.next_pos + np.arange(len(ids), dtype=np.int32)
        mine, self.kv = self.kv, kv
        q = np.array(self.step(list(ids), n_prompt).taps["q"])
        self.kv = mine
        return {"q": q.transpose(0, 2, 1, 3), "q_pos": pos, "q_at": pos}

    def step(self, ids: list[int], n_prompt: int) -> StepOut:
        """Run and commit `ids`, all of them wanted."""
        n = len(ids)
        pos = self.kv.next_pos + np.arange(n, dtype=np.int32)
        rows = Rows(
            np.asarray(ids, np.int32), pos, np.maximum(n_prompt, pos + 1).astype(np.int32),
            np.zeros(n, np.int32), np.arange(-1, n - 1, dtype=np.int32), np.ones(n, np.int32),
        )  # fmt: skip
        out = self.runner.run(rows, [self.kv], True)
        addr, block, slot = self.store.reserve(self.kv, n)
        self.runner.commit(np.arange(n, dtype=np.int32), addr, block, slot)
        self.store.extend(self.kv, pos)
        return out

    def next_barrier(self, n_prompt: int) -> int:
        at = self.policy.barrier(n_prompt, self.kv.length) if self.policy else FOREVER
        if self.seal_every:
            at = min(at, (self.kv.length // self.seal_every + 1) * self.seal_every)
        return at

    def feed(self, ids: list[int], n_prompt: int, chunk: int = 64) -> Any:
        """Logits (len(ids), n_vocab) after each of `ids`."""
        logits = []
        i = 0
        while i < len(ids):
            at = self.next_barrier(n_prompt)
            assert at > self.kv.length, "a barrier lies ahead of the committed length"
            n = min(chunk, len(ids) - i, at - self.kv.length)
            first, pos = self.kv.length, self.kv.next_pos + np.arange(n, dtype=np.int32)
            out = self.step(ids[i : i + n], n_prompt)
            self.ids += ids[i : i + n]
            logits.append(np.array(out.logits))
            self.queries.append((first, pos, out.taps["q"]))
            i += n
            if self.kv.length == at:
                self.store.seal(self.kv)
                if self.policy and at == self.policy_barrier(n_prompt, at):
                    self.ask(n_prompt)
        return np.concatenate(logits)

    def policy_barrier(self, n_prompt: int, length: int) -> int:
        return self.policy.barrier(n_prompt, length - 1)

    def taps(self, n_prompt: int) -> dict[str, Any]:
        """What the policy's trait asks for, as `Seq.taps` gives it."""
        at = np.concatenate([np.arange(f, f + len(p), dtype=np.int32) for f, p, _ in self.queries])
        pos = np.concatenate([p for _, p, _ in self.queries])
        q = np.concatenate([x for _, _, x in self.queries], axis=1).transpose(0, 2, 1, 3)
        keep = np.zeros(len(at), bool)
        for t in self.policy.traits.taps:
            last = int(t[6:]) if t.startswith("q.last") else 0
            keep |= {"q.new": at >= 0, "q.answer": at >= n_prompt}.get(
                t, (at >= n_prompt - last) & (at < n_prompt)
            )
        if not keep.any():
            return {}
        return {"q": q[:, :, keep].astype(np.float32), "q_pos": pos[keep], "q_at": at[keep]}

    def ask(self, n_prompt: int) -> None:
        taps, self.queries = self.taps(n_prompt), []
        view = self.store.view(self.kv, n_prompt, self.seed, self.ids, self.behind)
        plan = self.policy.plan(view, taps)
        self.plans.append((self.kv.length, plan))
        if plan is not None:
            self.store.apply(self.kv, plan, self.policy.traits.moves)
