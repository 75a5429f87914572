"""Opens the companions that methods name; `companion` says what names mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pronghorn.beside import Beside
from pronghorn.companion import Borrowed, Companion
from pronghorn.compose import Composition, compose
from pronghorn.errors import MethodError
from pronghorn.kv.store import Store
from pronghorn.model.bind import Bound, bind
from pronghorn.model.sublayers import parallel, without
from pronghorn.model.tape import Tape
from pronghorn.model.vocab_map import mapped
from pronghorn.nulls import Dense, ExactKV, NoReuse
from pronghorn.ops.ref import Ops
from pronghorn.run.base import Runner

if TYPE_CHECKING:
    from pronghorn.model.checkpoint import Checkpoint
    from pronghorn.model.tokenizer import Tokenizer

SELF = "self"
_NAME = re.compile(r"(.+?)((?::(?:weight|skip|exit|block)=[^:]*)*)")


class Model(NamedTuple):
    checkpoint: Checkpoint
    tape: Tape
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Home:
    """The engine's own model, and how it makes others: make(bound, store, runners beside it)
    is a runner, kv_dtype(bound) the dtype of its rows."""

    model: Model
    methods: Composition
    ops: Ops
    bound: Bound
    store: Store
    runner: Runner
    make: Callable[[Bound, Store, Sequence[Any]], Runner]
    kv_dtype: Callable[[Bound], str]

    def store_for(self, bound: Bound) -> Store:
        """An exact one."""
        return Store(
            self.ops, bound.n_layers, bound.n_kv, bound.head_dim, self.kv_dtype(bound), ExactKV(), Dense(),
            "seq", list(bound.kv_ropes), bound.attention,
        )  # fmt: skip


@dataclass(frozen=True)
class Name:
    """A companion's name, taken apart."""

    model: str
    weight: str = ""
    skip: tuple[str, ...] = ()
    exit: int = 0  # layers that run; 0: all
    block: int = 1

    @property
    def borrows(self) -> bool:
        """Whether it can read the rows of the engine's own model."""
        return self.model == SELF and not self.weight and (bool(self.skip) or self.exit > 0 or self.block > 1)

    def cut(self, tape: Tape) -> Tape:
        """Raises `MethodError`."""
        if self.exit > tape.n_layers:
            raise MethodError(f"an exit after {self.exit} layers: this model has {tape.n_layers}")
        late = range(self.exit or tape.n_layers, tape.n_layers)
        odd = map(str, range(1, tape.n_layers - 1, 2))
        named = odd if self.skip == ("odd",) else self.skip
        skip = [*named, *map(str, late)]
        return without(tape, skip) if skip else tape


def parse(name: str) -> Name:
    """Raises `MethodError`."""
    found = _NAME.fullmatch(name)
    if not found:
        raise MethodError("a companion model needs a name: a bundled model, a folder, a file or org/name")
    given = dict(option.split("=") for option in found[2].split(":")[1:])
    for key in ("exit", "block"):
        if key in given and not (given[key].isdecimal() and 1 <= int(given[key]) <= 1 << 16):
            raise MethodError(f"{key} of a companion is a whole number from 1, not {given[key]!r}")
    return Name(
        found[1], given.get("weight", ""), tuple(s for s in given.get("skip", "").split("+") if s),
        int(given.get("exit", 0)), int(given.get("block", 1)),
    )  # fmt: skip


def open_companions(names: Sequence[str], home: Home) -> dict[str, Companion]:
    """By name. Raises `MethodError`, and what opening a checkpoint raises."""
    models = {SELF: home.model}
    runners = [home.runner]
    out: dict[str, Companion] = {}
    wanted = {name: parse(name) for name in names}
    # whole ones first: the others find their matrices there
    for name in sorted(wanted, key=lambda n: (len(wanted[n].skip), -wanted[n].exit % (1 << 17), n)):
        what = wanted[name]
        if what.model not in models:
            models[what.model] = load(what.model)
        out[name] = _open(what, models[what.model], home, runners)
    for model in models.values():
        if model is not home.model:
            model.checkpoint.tensors.release()
    return out


def _open(what: Name, model: Model, home: Home, runners: list[Runner]) -> Companion:
    own = what.model == SELF
    formats = compose([f"weight.{what.weight}"]).weight if what.weight else home.methods.weight if own else ()
    tape = what.cut(model.tape)
    skips = set(home.methods.gate.skips(tape.n_layers)) if own else set()
    n_vocab, tokenizer = home.bound.n_vocab, home.model.tokenizer

    def runner(tape: Tape, store: Store | None) -> tuple[Runner, Store]:
        bound = bind(tape, model.checkpoint.tensors, formats, sorted(skips))
        store = store or home.store_for(bound)
        runners.append(home.make(bound, store, runners))
        return runners[-1], store

    if what.borrows:
        made, _ = runner(parallel(tape, what.block), home.store)
        return Borrowed(made, n_vocab, tokenizer, tape.context)
    skips |= set(range(tape.n_layers)) - {op.layer for op in tape.ops}
    made, store = runner(tape, None)
    fuzzy = runner(parallel(tape, what.block), store)[0] if what.block > 1 else made
    vocab = None if own else mapped(tokenizer, model.tokenizer, n_vocab)
    # a row whose rotation depends on the prompt's length is of no use to another prompt
    reuse = NoReuse() if any(r.varies for r in tape.ropes) else home.methods.reuse.fresh()
    return Beside(made, store, reuse, n_vocab, tokenizer, tape.context, vocab, fuzzy)


def load(name: str) -> Model:
    """A checkpoint by what `LLM` takes for a model."""
    from pronghorn.llm import find_model
    from pronghorn.model.arch import build_tape
    from pronghorn.model.checkpoint import load_checkpoint, validate
    from pronghorn.model.tokenizer import load_tokenizer

    checkpoint = load_checkpoint(find_model(name))
    tape = build_tape(checkpoint.config)
    validate(checkpoint, tape.expected())
    return Model(checkpoint, tape, load_tokenizer(checkpoint.path, checkpoint.gguf_metadata))
