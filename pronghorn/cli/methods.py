"""`pronghorn methods`: every method there is, read from the methods themselves."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from pronghorn.cli import show
from pronghorn.cli.options import AsJson


@dataclass(frozen=True)
class Option:
    """default: as it is typed, "" when it must be given."""

    name: str
    kind: str
    default: str
    required: bool
    about: str


@dataclass(frozen=True)
class Method:
    """What a method's file says of itself."""

    slot: str
    name: str
    guarantee: str
    about: str  # first paragraph of the module's docstring
    text: str  # all of it
    options: tuple[Option, ...]


def methods(
    name: Annotated[str, typer.Argument(help="Tell all about this one.")] = "",
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The page of the documentation.")] = False,
) -> None:
    """List the methods by slot: what each promises and its options with their defaults.

    [bold]Examples[/bold]

      pronghorn methods

      pronghorn methods snapkv

      pronghorn methods --json
    """
    from pronghorn.compose import SLOTS, names, resolve

    chosen = [resolve(name)] if name else [(slot, n) for slot in SLOTS for n in names()[slot]]
    found = [describe(slot, n) for slot, n in chosen]
    if as_json:
        show.as_json([asdict(m) for m in found])
    elif markdown:
        sys.stdout.write(page(found))
    elif name:
        _one(found[0])
    else:
        _all(found)


def describe(slot: str, name: str) -> Method:
    """Read one method's file."""
    from pronghorn.compose import load

    cls = load(slot, name)
    module = sys.modules[cls.__module__]
    text = inspect.cleandoc(module.__doc__ or "")
    notes = _comments(inspect.getsource(cls))
    options = tuple(_option(f, notes.get(f.name, "")) for f in dataclasses.fields(cls) if f.init)
    return Method(slot, name, _guarantee(cls), " ".join(text.partition("\n\n")[0].split()), text, options)


def _guarantee(cls: Any) -> str:
    """A class attribute, or a property that may depend on the options (then: with the defaults)."""
    traits = cls.traits
    if not isinstance(traits, property):
        return str(traits.guarantee.value)
    required = {f.name: "" for f in dataclasses.fields(cls) if f.init and _is_required(f)}
    return str(cls(**required).traits.guarantee.value)


def _is_required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _option(f: dataclasses.Field[Any], about: str) -> Option:
    default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    if isinstance(default, tuple):
        text = "+".join(map(str, default))
    else:
        text = "" if _is_required(f) else str(default).lower() if isinstance(default, bool) else str(default)
    kind = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
    return Option(f.name, kind, text, _is_required(f), about)


def _comments(source: str) -> dict[str, str]:
    """Field -> the comment that ends its line."""
    found = re.findall(r"^    (\w+): [^#\n]*#\s*(.+)$", source, re.MULTILINE)
    return dict(found)


def _shown(option: Option) -> str:
    return f"{option.name}=..." if option.required else f"{option.name}={option.default or repr('')}"


def _all(found: list[Method]) -> None:
    from pronghorn.compose import SLOTS
    from pronghorn.llm import DEFAULT_USE

    for slot, (title, _, several) in SLOTS.items():
        rows = []
        for m in found:
            if m.slot == slot:
                name = m.name + (" *" if m.name in DEFAULT_USE else "")
                rows.append([name, m.guarantee, _brief(m.about), ", ".join(_shown(o) for o in m.options)])
        if rows:
            more = ", several at once" if several else ""
            show.table(f"{slot}: {title}{more}", ["method", "guarantee", "what it is", "options"], rows)
    print("* in use unless another method takes its slot. `pronghorn methods NAME` tells more.")


def _brief(text: str) -> str:
    """Without what stands in brackets: the source, which the method's own page gives."""
    return re.sub(r" ?\([^()]*\)", "", text)


def _one(m: Method) -> None:
    show.facts(
        m.name,
        [("slot", m.slot), ("guarantee", m.guarantee), ("use", f"--use {m.name}" + _example(m))],
    )
    print(f"\n{m.text}\n")
    if m.options:
        rows = [[o.name, o.kind, "required" if o.required else o.default or "''", o.about] for o in m.options]
        show.table("Options", ["option", "type", "default", ""], rows)
    else:
        print("No options.")


def _example(m: Method) -> str:
    return ":" + ",".join(_shown(o) for o in m.options) if m.options else ""


def page(found: list[Method]) -> str:
    """The page of the documentation, in Markdown."""
    from pronghorn.compose import SLOTS

    out = [
        "# Methods\n",
        "Made by `pronghorn methods --markdown`; do not edit.\n",
        "*exact*: the same tokens as the plain path of the same backend. *distribution*: the same sampling",
        "distribution, other random draws. *approximate*: quality traded for cost.\n",
    ]
    for slot, (title, _, _) in SLOTS.items():
        group = [m for m in found if m.slot == slot]
        if group:
            out.append(f"## {slot}: {title}\n")
        for m in group:
            out += [f"### `{m.name}` ({m.guarantee})\n", m.text + "\n"]
            if m.options:
                out += ["| option | type | default | |", "|---|---|---|---|"]
                out += [_row(o) for o in m.options]
                out.append("")
    return "\n".join(out)


def _row(o: Option) -> str:
    default = "required" if o.required else f"`{o.default or repr('')}`"
    return f"| `{o.name}` | {_cell(o.kind)} | {default} | {_cell(o.about)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
