"""What every method file has in common."""

from __future__ import annotations

import dataclasses
import inspect
import typing

import pytest

from pronghorn.compose import parse
from pronghorn.types import Traits
from tests.conformance import _find
from tests.small import spec

ALL = [
    (slot.name, name)
    for slot in sorted(_find.ROOT.iterdir())
    if slot.is_dir() and not slot.name.startswith("_")
    for name in (_find.names(slot.name) if any(slot.glob("[!_]*.py")) else ())
]
PLAIN = (int, float, str, bool, tuple[int, ...])


@pytest.mark.parametrize(("slot", "name"), ALL)
def test_form(slot: str, name: str) -> None:
    cls = _find.classes(slot)[name]
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        assert hints[f.name] in PLAIN, f"{f.name}: the command line cannot parse {hints[f.name]}"
    _, method = parse(spec(name, slot))
    _, again = parse(spec(name, slot))
    assert isinstance(method, cls)
    assert isinstance(method.traits, Traits)
    assert method.traits.rows in ("seq", "layer", "head")
    assert method == again
    assert hash(method) == hash(again)
    assert (__import__(cls.__module__, fromlist=["x"]).__doc__ or "").strip()


@pytest.mark.parametrize(("slot", "name"), ALL)
def test_fields_are_explained(slot: str, name: str) -> None:
    cls = _find.classes(slot)[name]
    source = inspect.getsource(cls)
    for f in dataclasses.fields(cls):
        line = next(x for x in source.splitlines() if x.strip().startswith(f"{f.name}: "))
        explained = "#" in line or f"{f.name}: " in (cls.__doc__ or "")
        assert explained, f"nothing says what {name}.{f.name} is"
