"""Where peers are: drivers in the checkout's bench/peers, environments where `build.py` there put them."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pronghorn.bench.engines import Launch
from pronghorn.bench.shapes import cache
from pronghorn.errors import RequestError

NAMES = ("llama.cpp", "openvino", "onnxruntime", "vllm", "transformers")
# peers that speculate -> their ways to, without another model; "" is without drafts
WAYS = {"openvino": ("", "lookup"), "llama-server": ("", "lookup", "cache"), "transformers": ("", "lookup")}
PRECISIONS = ("bf16", "int8", "int4")
SCRIPTS = Path(__file__).resolve().parents[2] / "bench" / "peers"


def environments() -> Path:
    return cache() / "peers"


def precision_of(use: Sequence[str]) -> str:
    """What peers are to run in, from the name of the weight format among Pronghorn's methods. Raises
    `RequestError` where the name does not say."""
    from pronghorn.compose import names

    formats = [
        name for spec in use if (name := spec.partition(":")[0].removeprefix("weight.")) in names()["weight"]
    ]
    if not formats:
        return "bf16"
    found = re.search(r"(\d+)", formats[0])
    bits = {"16": "bf16", "8": "int8", "4": "int4"}
    if not found or found[1] not in bits:
        raise RequestError(f"which precision of the peers is like {formats[0]!r}? say it with --precision")
    return bits[found[1]]


def peers(
    names: Sequence[str], model: Path, precision: str, threads: int, home: Path, folder: Path
) -> list[Launch]:
    """How peers start. home: where what they make of the model is kept; folder: their environments. Raises
    `RequestError` for one that is not there."""
    out = []
    for name in names:
        if name not in NAMES:
            raise RequestError(f"no peer called {name!r}; known: {', '.join(NAMES)}")
        python = folder / name / "bin" / "python"
        if not python.exists():
            raise RequestError(
                f"{name} is not installed in {folder}: python {SCRIPTS / 'build.py'} --dir {folder} {name}"
            )
        out.append(_launch(name, str(python), model, precision, threads, home))
    return out


def speculating(
    names: Sequence[str], model: Path, precision: str, threads: int, home: Path, folder: Path, draft: Path
) -> list[Launch]:
    """The same for peers that speculate, each in all of its ways, which `use` says. draft: a smaller model
    for one more of them; an empty path: none. Raises `RequestError`."""
    out = []
    for name in names:
        if name not in WAYS:
            raise RequestError(f"no peer called {name!r} that speculates; known: {', '.join(WAYS)}")
        if name in NAMES:
            (one,) = peers([name], model, precision, threads, home, folder)
        else:  # a program of its own, which its driver finds
            one = _launch(name, sys.executable, model, precision, threads, home)
        out += [replace(one, name=f"{name} {way}".strip(), use=(way,)) for way in WAYS[name]]
        if draft.parts:
            use = ("draft", str(draft), str(home / folder_name(draft)))
            out.append(replace(one, name=f"{name} draft", use=use))
    return out


def _launch(name: str, python: str, model: Path, precision: str, threads: int, home: Path) -> Launch:
    driver = SCRIPTS / f"{name}_driver.py"
    if not driver.exists():
        raise RequestError(f"{driver} is not there: peers run from a checkout of Pronghorn")
    return Launch(name, python, driver, str(model), (), precision, threads, home / folder_name(model))


def folder_name(model: Path) -> str:
    """A folder's name for what is made of a model: another one when the model's files change."""
    files = [model] if model.is_file() else sorted(p for p in model.iterdir() if p.is_file())
    said = [(str(p.resolve()), s.st_size, s.st_mtime_ns) for p in files for s in [p.stat()]]
    return f"{model.stem}-{hashlib.sha256(repr(said).encode()).hexdigest()[:12]}"
