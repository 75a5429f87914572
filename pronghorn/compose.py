"""From `--use name:key=value,...` to a checked set of methods.

Methods are found by path: `methods/<slot>/<name>.py` holds one public dataclass whose fields are its only
configuration. Nothing is registered anywhere. What may be combined follows from traits, never from names.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from pronghorn import nulls
from pronghorn.errors import MethodError
from pronghorn.slots import Merging
from pronghorn.types import Guarantee, Traits

HOME = Path(__file__).parent / "methods"

# slot -> (what it decides, its null object, several methods allowed)
SLOTS: dict[str, tuple[str, Any, bool]] = {
    "weight": ("weight format", nulls.AsStored(), True),
    "gate": ("parts of the model that run", nulls.WholeModel(), False),
    "kvfmt": ("KV format", nulls.ExactKV(), False),
    "kv": ("KV policy", nulls.KeepAll(), False),
    "select": ("KV pages read", nulls.Dense(), False),
    "reuse": ("KV reuse", nulls.NoReuse(), False),
    "prune": ("prompt tokens run", nulls.KeepPrompt(), False),
    "reside": ("what stays on the device", nulls.AllResident(), False),
    "constrain": ("constraint", nulls.NoConstraint(), False),
    "search": ("search", nulls.OneBranch(), False),
    "shape": ("logits", (), True),
    "draft": ("drafter", nulls.NoDraft(), False),
    "verify": ("verifier", nulls.OwnToken(), False),
    "sched": ("scheduler", nulls.InOrder(), False),
}


@cache
def names() -> dict[str, tuple[str, ...]]:
    """Methods of each slot, by the names users type."""
    return {
        slot: tuple(
            sorted(p.stem.replace("_", "-") for p in (HOME / slot).glob("*.py") if not p.stem.startswith("_"))
        )
        for slot in SLOTS
    }


def load(slot: str, name: str) -> type[Any]:
    """The class of a method."""
    module = importlib.import_module(f"pronghorn.methods.{slot}.{name.replace('-', '_')}")
    found = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and dataclasses.is_dataclass(c) and c.__module__ == module.__name__
        and not c.__name__.startswith("_")
    ]  # fmt: skip
    if len(found) != 1:
        raise MethodError(f"{module.__name__} must define exactly one public dataclass, has {len(found)}")
    return found[0]


def resolve(name: str) -> tuple[str, str]:
    """(slot, method) for "name" or "slot.name". Raises `MethodError` naming the nearest known one."""
    slot, dot, rest = name.partition(".")
    if dot and slot in SLOTS:
        if rest in names()[slot]:
            return slot, rest
        raise MethodError(_unknown(f"method in slot {slot!r}", rest, names()[slot]))
    homes = [s for s in SLOTS if name in names()[s]]
    if len(homes) > 1:  # methods that are never meant by the bare name say so
        homes = [s for s in homes if getattr(load(s, name), "bare", True)] or homes
    if len(homes) == 1:
        return homes[0], name
    if homes:
        choices = " or ".join(f"{s}.{name}" for s in homes)
        raise MethodError(f"{name!r} names methods of several slots: say {choices}")
    every = sorted({n for group in names().values() for n in group})
    raise MethodError(_unknown("method", name, every) + "; `pronghorn methods` lists them all")


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known) or 'none'}"
    return f"no {what} called {name!r}{hint}"


def parse(spec: str, files: bool = True) -> tuple[str, Any]:
    """(slot, method instance) for "name:key=value,...". A value may be quoted with ' or "; @path reads a
    text file where `files` allows it; tuples are written 1+2+3."""
    name, _, options = spec.partition(":")
    slot, method = resolve(name.strip())
    cls = load(slot, method)
    hints = typing.get_type_hints(cls)
    kinds = {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}
    values: dict[str, Any] = {}
    for item in _split(options):
        key, eq, text = item.partition("=")
        key = key.strip().replace("-", "_")
        if key not in kinds:
            raise MethodError(_unknown(f"option of {method!r}", key, kinds))
        if not eq:
            raise MethodError(f"option {key!r} of {method!r} needs a value: {key}=...")
        if key in values:
            raise MethodError(f"option {key!r} of {method!r} is given twice")
        values[key] = _value(method, key, kinds[key], text, files)
    try:
        return slot, cls(**values)
    except TypeError as e:
        missing = [
            f.name
            for f in dataclasses.fields(cls)
            if f.init and f.name not in values and f.default is dataclasses.MISSING
        ]
        raise MethodError(f"method {method!r} needs {', '.join(missing)} ({e})") from None


def _split(options: str) -> list[str]:
    """Split at commas outside quotes."""
    out, quote, start = [], "", 0
    for i, c in enumerate(options):
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'" and options[i - 1] == "=":
            quote = c
        elif c == ",":
            out.append(options[start:i])
            start = i + 1
    if quote:
        raise MethodError(f"unclosed quote in options {options!r}")
    return [o for o in [*out, options[start:]] if o.strip()]


def _value(method: str, key: str, kind: Any, text: str, files: bool) -> Any:
    if len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]:
        text = text[1:-1]
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                text.lower()
            ]
        if kind in (int, float):
            return kind(text)
        if typing.get_origin(kind) is tuple:
            return tuple(int(t) for t in text.split("+") if t)
    except (ValueError, KeyError):
        what = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "like 1+2+3")
        raise MethodError(f"option {key!r} of {method!r} must be {what}, not {text!r}") from None
    if text.startswith("@") and files:
        try:
            return Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise MethodError(f"option {key!r} of {method!r}: cannot read {text[1:]!r}: {e}") from None
    return text


def name_of(method: Any) -> str:
    """The name a user would type, "" for a null object."""
    module = type(method).__module__
    if not module.startswith("pronghorn.methods."):
        return "" if module == nulls.__name__ else type(method).__name__
    return module.rsplit(".", 1)[1].replace("_", "-")


def describe(method: Any) -> str:
    """name:key=value,... with the options that differ from their defaults."""
    out = []
    for f in dataclasses.fields(method):
        value = getattr(method, f.name) if f.init else f.default
        if value != f.default:
            text = "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
            text = text if len(text) < 60 else text[:57] + "..."
            out.append(f'{f.name}="{text}"' if "," in text else f"{f.name}={text}")
    return name_of(method) + (":" + ",".join(out) if out else "")


@dataclass(frozen=True)
class Facts:
    """What the core knows of the model and the machine when it checks a composition."""

    n_layers: int
    context: int
    hard_context: bool  # learned absolute positions
    rope_varies: bool  # rotary frequencies depend on the context length
    companions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Composition:
    """One method (or null object) for every slot."""

    weight: tuple[Any, ...] = ()
    gate: Any = SLOTS["gate"][1]
    kvfmt: Any = SLOTS["kvfmt"][1]
    kv: Any = SLOTS["kv"][1]
    select: Any = SLOTS["select"][1]
    reuse: Any = SLOTS["reuse"][1]
    prune: Any = SLOTS["prune"][1]
    reside: Any = SLOTS["reside"][1]
    constrain: Any = SLOTS["constrain"][1]
    search: Any = SLOTS["search"][1]
    shape: tuple[Any, ...] = ()
    draft: Any = SLOTS["draft"][1]
    verify: Any = SLOTS["verify"][1]
    sched: Any = SLOTS["sched"][1]

    def each(self) -> list[tuple[str, Any]]:
        """(slot, method) of everything in use, null objects included."""
        out: list[tuple[str, Any]] = []
        for slot in SLOTS:
            held = getattr(self, slot)
            out += [(slot, m) for m in held] if isinstance(held, tuple) else [(slot, held)]
        return out

    @property
    def models(self) -> tuple[str, ...]:
        """Companion models in use."""
        return tuple(sorted({m for t in self.traits for m in t.models}))

    @property
    def stores(self) -> tuple[str, ...]:
        """Datastores in use."""
        return tuple(sorted({s for t in self.traits for s in t.stores}))

    @property
    def tables(self) -> tuple[tuple[str, str], ...]:
        """Calibration tables in use, with their kinds."""
        return tuple(sorted({(s, t.table) for t in self.traits for s in t.tables}))

    @property
    def traits(self) -> list[Traits]:
        return [m.traits for _, m in self.each()]

    @property
    def guarantee(self) -> Guarantee:
        """The weakest promise of the methods in use."""
        out = Guarantee.EXACT
        for t in self.traits:
            out = out.weakest(t.guarantee)
        return out

    @property
    def rows(self) -> str:
        """The finest granularity at which stored rows may differ."""
        order = ["seq", "layer", "head"]
        return max((t.rows for t in self.traits), key=order.index)

    @property
    def taps(self) -> tuple[str, ...]:
        return tuple(sorted({tap for t in self.traits for tap in t.taps}))

    @cached_property
    def q_rows(self) -> int:
        """Prompt rows at the end whose rotated queries are wanted."""
        return max((int(t.removeprefix("q.last")) for t in self.taps if t.startswith("q.last")), default=0)

    @cached_property
    def q_new(self) -> bool:
        """The rotated queries of every row are wanted."""
        return "q.new" in self.taps

    @cached_property
    def q_answer(self) -> bool:
        """Those of every row behind the prompt are."""
        return self.q_new or "q.answer" in self.taps

    @cached_property
    def private(self) -> bool:
        """Rows are of use only with what was noted of them and who asked for them, which no stored state
        has."""
        return self.q_answer or any(t.notes for t in self.traits)

    @cached_property
    def again(self) -> int:
        """Rows at the end of a prompt that run although they are stored: the last one, for its logits, those
        whose queries are wanted, and those that a method says."""
        return max([1, self.q_rows, *(t.recompute for t in self.traits)])

    @cached_property
    def parsed(self) -> Callable[[str], tuple[str, Any]]:
        """Requests' own methods: one instance for a spec, so that what it learns is kept from request to
        request, of this composition alone: another engine has another vocabulary."""
        return lru_cache(256)(_parsed)

    @cached_property
    def moves(self) -> bool:
        return any(t.moves for t in self.traits)


def compose(use: Sequence[str | Any], defaults: Sequence[str | Any] = ()) -> Composition:
    """Build a composition from specs or method instances; `defaults` fill slots that `use` leaves empty.
    Raises `MethodError`."""
    chosen: dict[str, list[Any]] = {}
    for spec in use:
        slot, method = parse(spec) if isinstance(spec, str) else (slot_of(spec), spec)
        held = chosen.setdefault(slot, [])
        if held and not SLOTS[slot][2]:
            raise MethodError(
                f"{name_of(held[0])!r} and {name_of(method)!r} both fill the slot {slot!r} "
                f"({SLOTS[slot][0]}): choose one"
            )
        if any(type(m) is type(method) and _only(m) == _only(method) for m in held):
            raise MethodError(f"{name_of(method)!r} is given twice")
        held.append(method)
    taken = set(chosen)
    for spec in defaults:
        slot, method = parse(spec) if isinstance(spec, str) else (slot_of(spec), spec)
        if slot not in taken:
            chosen.setdefault(slot, []).append(method)
    chosen["shape"] = sorted(chosen.get("shape", []), key=lambda m: int(m.order))
    chosen["weight"] = sorted(chosen.get("weight", []), key=lambda m: not _only(m))
    fields = {s: tuple(ms) if SLOTS[s][2] else ms[0] for s, ms in chosen.items() if ms}
    return Composition(**fields)


# What a request may choose for itself; the rest is laid down with the weights and the store.
OWN_SLOTS = ("constrain", "shape", "search", "draft", "verify", "kv")


def override(base: Composition, use: Sequence[str | Any], facts: Facts) -> Composition:
    """`base` with a request's own methods: each takes the place of `base`'s in its slot, and shapers come
    on top. Specs do not read files. Raises `MethodError` with the reason why one cannot be had."""
    chosen: dict[str, Any] = {}
    for spec in use:
        slot, method = base.parsed(spec) if isinstance(spec, str) else (slot_of(spec), spec)
        name = name_of(method) or type(method).__name__
        if slot not in OWN_SLOTS:
            raise MethodError(
                f"{name} is a matter of the whole engine ({SLOTS[slot][0]}), not of one request: start with "
                f"--use {name}; a request may choose {', '.join(OWN_SLOTS)}"
            )
        if SLOTS[slot][2]:
            held = chosen.get(slot, ())
            if any(type(m) is type(method) for m in held):
                raise MethodError(f"{name!r} is given twice")
            chosen[slot] = (*held, method)
        elif slot in chosen:
            raise MethodError(
                f"{name_of(chosen[slot])!r} and {name!r} both fill the slot {slot!r} ({SLOTS[slot][0]}): "
                "choose one"
            )
        else:
            chosen[slot] = method
        t: Traits = method.traits
        order = ["seq", "layer", "head"]
        queries = any(tap.startswith("q.") for tap in base.taps)  # whosever they are
        absent = [
            tap for tap in t.taps
            if tap not in base.taps and not tap.startswith("top") and not (queries and tap.startswith("q."))
        ]  # fmt: skip
        if order.index(t.rows) > order.index(base.rows):
            raise MethodError(f"{name} keeps other rows per {t.rows}, and this engine's store has groups per "
                              f"{base.rows}: start with --use {name} to lay it out so")  # fmt: skip
        files: set[Any] = {*t.models, *t.stores, *((s, t.table) for s in t.tables)}
        files -= {*base.models, *base.stores, *base.tables}
        if absent or files:
            needs = ", ".join([*absent, *t.models, *t.stores, *t.tables])
            raise MethodError(f"{name} needs {needs}, which this engine was not started with: start with "
                              f"--use {name}")  # fmt: skip
    own = chosen.get("shape", ())
    kept = [m for m in base.shape if not any(type(m) is type(o) for o in own)]
    chosen["shape"] = tuple(sorted([*kept, *own], key=lambda m: int(m.order)))
    out = dataclasses.replace(base, **chosen)
    reasons = check(out, facts)
    if reasons:
        raise MethodError("this combination cannot work: " + "; ".join(reasons))
    return out


def _parsed(spec: str) -> tuple[str, Any]:
    if len(spec) > 1 << 16:
        raise MethodError(f"a method with {len(spec)} characters of options: 64 KiB is the most")
    return parse(spec, files=False)


def _only(method: Any) -> str:
    """The tensors that a method confines itself to: such a one is asked before those that take any."""
    return str(getattr(method, "only", ""))


def slot_of(method: Any) -> str:
    module = type(method).__module__
    if module.startswith("pronghorn.methods."):
        return module.split(".")[2]
    slot = getattr(method, "slot", "")
    if slot in SLOTS:
        return str(slot)
    raise MethodError(
        f"{type(method).__name__} is not in pronghorn/methods/<slot>/ and has no `slot` attribute"
    )


def check(c: Composition, facts: Facts) -> list[str]:
    """Reasons why this composition cannot work on this model; empty when it can."""
    reasons = []
    for slot, m in c.each():
        name, t = name_of(m) or type(m).__name__, m.traits
        if t.moves and facts.hard_context:
            reasons.append(
                f"{name} moves stored rows to new positions, and this model has learned position "
                "embeddings, which a stored key cannot change: use a policy that keeps positions"
            )
        if t.moves and facts.rope_varies:
            reasons.append(
                f"{name} re-rotates stored keys, and this model's rotary frequencies change with the "
                "context length, so a key's rotation is not known afterwards: use a policy that keeps "
                "positions"
            )
        if "q.behind" in t.taps and facts.hard_context:
            reasons.append(
                f"{name} runs rows behind the prompt, and this model has learned position embeddings, which "
                "end with its context: use a policy that runs none"
            )
        missing = [x for x in t.models if x not in facts.companions]
        if missing:
            reasons.append(f"{name} needs a companion model: {', '.join(missing)}")
        if slot == "select" and c.rows != "seq" and any(
            source not in (-1, i) for i, source in enumerate(m.sources(facts.n_layers))
        ):  # fmt: skip
            reasons.append(
                f"{name} reads a layer by another layer's choice, and a policy in use keeps other rows in "
                f"each {c.rows}: use one that keeps the same rows everywhere, or another selector"
            )
        if isinstance(m, Merging) and c.rows != "seq" and m.under(facts.n_layers):
            reasons.append(
                f"{name} lays pages of one layer on another's, and a policy in use keeps other rows in each "
                f"{c.rows}: use one that keeps the same rows everywhere, or another format"
            )
        if slot == "select" and m.choice.keep and c.reside.swaps:
            reasons.append(
                f"{name} keeps choices, which {name_of(c.reside)} does not move: leave one of them out"
            )
        if slot == "gate":
            try:
                m.skips(facts.n_layers)
            except MethodError as e:
                reasons.append(str(e))
    return reasons


def effects(slot: str, method: Any) -> list[str]:
    """What a method makes the core do, for people."""
    t: Traits = method.traits
    out = []
    if t.drops:
        out.append("drops stored rows" + (f", per {t.rows}" if t.rows != "seq" else ""))
    if t.moves:
        out.append("moves positions")
    if t.recompute:
        out.append(f"runs {t.recompute} reused rows again")
    if t.taps:
        out.append("reads " + ", ".join(t.taps))
    if t.notes:
        out.append("notes " + ", ".join(t.notes) + " of each row")
    if t.models:
        out.append("needs " + ", ".join(t.models))
    if t.stores:
        out.append("looks up in " + ", ".join(t.stores))
    if t.tables:
        out.append("goes by " + ", ".join(t.tables))
    if t.greedy:
        out.append("temperature 0 only")
    if slot == "select" and not method.dense:
        c = method.choice
        out.append(f"reads {c.pages} pages of the sealed rows, by {c.score}")
    return out


def explain(c: Composition, facts: Facts) -> str:
    """What will run and why, one line a slot, then the promise."""
    lines = []
    for slot, m in c.each():
        name = name_of(m)
        if not name:
            continue
        why = "; ".join([m.traits.guarantee.value, *effects(slot, m)])
        lines.append(f"{slot:10} {describe(m):32} {why}")
    weak = [name_of(m) for _, m in c.each() if m.traits.guarantee is c.guarantee and name_of(m)]
    because = "" if c.guarantee is Guarantee.EXACT else f" (because of {', '.join(weak)})"
    lines.append(f"guarantee  {c.guarantee.value}{because}")
    lines += [f"cannot run: {r}" for r in check(c, facts)]
    return "\n".join(lines)
