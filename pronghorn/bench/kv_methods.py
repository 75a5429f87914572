"""Which KV methods are compared, and with which options: whatever is in the slots, at budgets that are shares
of the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pronghorn.compose import load, names, resolve
from pronghorn.errors import RequestError

PLAIN = "plain"
SHARES = (2, 4, 8, 16)
SLOTS = ("kv", "kvfmt", "select")


@dataclass(frozen=True)
class Entry:
    """A contestant. share: its budget is the rows over this, 0 where it has none; specs: what runs instead of
    what its name and its share say."""

    name: str
    share: int = 0
    specs: tuple[str, ...] = ()

    def use(self, rows: int) -> tuple[str, ...]:
        """The methods to run with, for a task that takes so many rows."""
        if self.specs or self.name == PLAIN:
            return self.specs
        slot, name = resolve(self.name)
        if not self.share:
            return (f"{slot}.{name}",)
        return (f"{slot}.{name}:{_options(slot, name, rows // self.share)}",)

    @property
    def label(self) -> str:
        return f"{self.name} 1/{self.share}" if self.share else self.name


def everything() -> list[str]:
    """All methods that keep, pack or choose rows, by names that are clear."""
    out = []
    for slot in SLOTS:
        for name in names()[slot]:
            method = load(slot, name)
            if slot == "kvfmt" and method().group == 0:  # it stores rows as they are
                continue
            out.append(name if slot == "kv" else f"{slot}.{name}")
    return out


def entries(methods: Sequence[str], specs: Sequence[str], shares: Sequence[int]) -> list[Entry]:
    """plain, then methods by name at every share, then what is given as it is to run; spaces there join
    several methods. Raises `MethodError` and `RequestError`."""
    out = [Entry(PLAIN)]
    for name in methods:
        if name == PLAIN:
            continue
        slot, _ = resolve(name)
        if slot not in SLOTS:
            raise RequestError(f"{name} neither keeps, packs nor chooses rows: give it by --use")
        out += [Entry(name)] if slot == "kvfmt" else [Entry(name, share) for share in shares]
    return out + [Entry(spec, specs=tuple(spec.split())) for spec in specs]


def _options(slot: str, method: str, budget: int) -> str:
    """Options, by their names, with which a method keeps, or reads, `budget` rows of a head.

    A window inside a budget is an eighth of it at most, and drops in the answer come as often: else a small
    budget would be all window, and the answer would hold twice what it says."""
    given: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(load(slot, method)) if f.init}
    if "policy" in given:  # it sets another one's budgets
        return f"policy='{given['policy']}:{_options(slot, given['policy'], budget)}'"
    few = max(1, budget // 8)
    out: dict[str, int] = {}
    if "budget" in given:
        out["budget"] = budget
        if "window" in given:
            out["window"] = min(given["window"], few)
    elif "window" in given:
        out["window"] = max(1, budget - given.get("sinks", 0))
    if "tokens" in given:
        out["tokens"] = budget
    if "dense_layers" in given:  # which would read, or keep, everything
        out["dense_layers"] = 0
    if "every" in given:
        out["every"] = min(given["every"], few)
    return ",".join(f"{k}={v}" for k, v in out.items())
