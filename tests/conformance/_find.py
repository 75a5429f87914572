"""Finds methods by path, so that a new file is tested without touching a suite.

The folder is the slot, the file's name (`-` for `_`) the method's. A suite asks for every method of its
slot in one of three settings:

    defaults    as `Method()` is
    tight       `budget` 24, `window` 8 (16 without a budget), `sinks` 4, `every` and `prompt_every` 16: a
                policy or a selector that has such a field drops or skips much of a hundred rows
    full        `budget`, `window` or `tokens` a million: nothing is dropped, everything selected

A field `policy` names the policy that another one asks: SnapKV, in the same setting.

Only fields that the method has are set; a method without any of them is tested as it is.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pronghorn
from pronghorn.datastore import Datastore
from pronghorn.slots import DraftRoom
from tests.conformance import _texts
from tests.conformance._rig import TableCompanion

ROOT = Path(pronghorn.__file__).parent / "methods"
MANY = 1_000_000
NEEDS: dict[str, Callable[[], dict[str, Any]]] = {  # what a method cannot do without, on a short text
    "rest": lambda: {"store": _texts.store()},
    "draft-model": lambda: {"model": "self"},
    "rapid": lambda: {"least": 0, "budget": 40, "chunk": 8, "query": 12, "first": 4},
}


def classes(slot: str) -> dict[str, Any]:
    """Method name -> class, for every file of a slot."""
    out = {}
    for path in sorted((ROOT / slot).glob("*.py")):
        if path.name.startswith("_"):
            continue
        module = importlib.import_module(f"pronghorn.methods.{slot}.{path.stem}")
        own = [
            c
            for name, c in vars(module).items()
            if isinstance(c, type) and c.__module__ == module.__name__ and not name.startswith("_")
        ]
        assert len(own) == 1, f"{path.name} has {len(own)} public classes; a method file has one"
        out[path.stem.replace("_", "-")] = own[0]
    assert out, f"no methods in {ROOT / slot}"
    return out


def names(slot: str) -> list[str]:
    return list(classes(slot))


def defaults(slot: str, name: str) -> Any:
    return classes(slot)[name](**(NEEDS[name]() if name in NEEDS else {}))


def room(drafter: Any, truth: Any) -> DraftRoom:
    """A step with room for anything, the datastores that a drafter looks up in, and companions that know
    `truth` and are sure of it."""
    return DraftRoom(
        stores={path: Datastore(path) for path in drafter.traits.stores},
        models={name: TableCompanion(20 * truth) for name in drafter.traits.models},
    )


def _with(cls: Any, wanted: dict[str, Any]) -> Any:
    have = {f.name for f in dataclasses.fields(cls)}
    return cls(**{k: v for k, v in wanted.items() if k in have})


def tight(slot: str, name: str) -> Any:
    cls = classes(slot)[name]
    has_budget = "budget" in {f.name for f in dataclasses.fields(cls)}
    return _with(
        cls,
        {"budget": 24, "window": 8 if has_budget else 16, "every": 16, "prompt_every": 16,
         "sinks": 4, "tokens": 48, "dense_layers": 0, "choosing": (0,),
         **({"start": 16, "recent": 16} if slot == "select" else {}),
         "channels": 4, "full_below": -1.0, "reuse_from": 1.0,
         "policy": "snapkv:budget=24,window=8"},
    )  # fmt: skip


def full(slot: str, name: str) -> Any:
    cls = classes(slot)[name]
    has_budget = "budget" in {f.name for f in dataclasses.fields(cls)}
    wanted: dict[str, Any] = {"budget": MANY} if has_budget else {"window": MANY}
    wanted["policy"] = f"snapkv:budget={MANY}"
    return _with(
        cls, {**wanted, "every": 16, "prompt_every": 16, "tokens": MANY, "dense_layers": 0, "choosing": (0,)}
    )
