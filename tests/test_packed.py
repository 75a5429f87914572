"""Reading packed checkpoints: whatever a damaged or hostile file says is an error with its cause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pronghorn.compose import parse
from pronghorn.errors import PronghornError
from pronghorn.llm import BUNDLED
from pronghorn.model.arch import build_tape
from pronghorn.model.checkpoint import load_checkpoint, validate
from pronghorn.model.convert import convert
from pronghorn.quantize import run, text

DRAFT = BUNDLED / "pronghorn-tiny-draft"
UP, DOWN, EMBED = (
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.embed_tokens.weight",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes in groups, codes with one scale for a row, 8-bit floats."""
    source = load_checkpoint(DRAFT)
    formats = [parse(s)[1] for s in ("fp8:only=*down*", "weight.int8:only=*embed*", "int4:symmetric=false")]
    out = tmp_path_factory.mktemp("packed") / "m"
    tape = build_tape(source.config)
    run.quantize(source, tape, formats, "rtn", text.NONE, out, lambda done, total: None)
    return out


def read_all(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    validate(checkpoint, build_tape(checkpoint.config).expected())
    for name in checkpoint.tensors:
        checkpoint.tensors[name]


def copy(whole: Path, to: Path) -> Path:
    shutil.copytree(whole, to)
    return to


def change(folder: Path, how: Callable[[Any], Any]) -> None:
    path = folder / "packed.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(how(content) or content))


def at(name: str, **changes: Any) -> Callable[[Any], None]:
    return lambda c: c["tensors"][name].update(changes)


def grid(name: str, **changes: Any) -> Callable[[Any], None]:
    return lambda c: c["tensors"][name]["grid"].update(changes)


def test_it_reads(whole: Path) -> None:
    read_all(whole)
    kinds = {load_checkpoint(whole).tensors[n].kind for n in (UP, DOWN, EMBED)}
    assert kinds == {"codes", "float8"}


def test_it_is_not_converted(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(PronghornError, match="made from"):
        convert(whole, tmp_path / "x.gguf", "f16")


BROKEN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no version": (lambda c: c.pop("version") and None, "version"),
    "a later version": (lambda c: c.update(version=2), "version 1"),
    "no list": (lambda c: c.update(tensors=[]), "list of tensors"),
    "a list": (lambda c: [c], "JSON object"),
    "no description": (lambda c: c["tensors"].update({UP: 3}), "no description"),
    "unknown kind": (at(UP, kind="codes2"), "kind"),
    "negative": (at(UP, shape=[-16, 64]), "shape"),
    "not whole": (at(UP, shape=[264.0, 96]), "shape"),
    "three sides": (at(UP, shape=[2, 3, 4]), "shape"),
    "huge": (at(UP, shape=[1 << 40, 96]), "shape"),
    "wide": (at(UP, shape=[264, (1 << 32) - 1]), "belong together"),
    "tall": (at(UP, shape=[(1 << 32) - 1, 96]), "belong together"),
    "bits": (grid(UP, bits=7), "no such grid"),
    "bits of another": (grid(UP, bits=3), "belong together"),
    "group": (grid(UP, group=48), "no such grid"),
    "group of another": (grid(UP, group=16), "belong together"),
    "scale": (grid(UP, scale="float64"), "no such grid"),
    "table": (grid(UP, table=[1, 2, 3]), "no such grid"),
    "table of words": (grid(UP, table=["a"] * 16), "grid"),
    "true bits": (grid(UP, bits=True), "grid"),
    "another field": (grid(UP, speed=3), "grid"),
    "no grid": (lambda c: c["tensors"][UP].pop("grid") and None, "grid"),
    "no parts": (lambda c: c["tensors"].update({"x.weight": c["tensors"][UP]}), "not in the"),
    "float8 as codes": (lambda c: c["tensors"].update({DOWN: c["tensors"][UP]}), "not in the"),
    "rows of another": (at(EMBED, shape=[4095, 96]), "belong together"),
    "not mentioned": (lambda c: c["tensors"].pop(UP) and None, UP),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_the_file_gets_wrong(whole: Path, tmp_path: Path, what: str) -> None:
    folder = copy(whole, tmp_path / "m")
    how, why = BROKEN[what]
    change(folder, how)
    with pytest.raises(PronghornError, match=why):
        read_all(folder)


def test_not_json(whole: Path, tmp_path: Path) -> None:
    folder = copy(whole, tmp_path / "m")
    (folder / "packed.json").write_text("{")
    with pytest.raises(PronghornError, match=r"packed\.json is not valid JSON"):
        read_all(folder)


@pytest.mark.parametrize(("name", "part"), [(UP, "panels"), (EMBED, "scale"), (DOWN, "scale"), (DOWN, "w")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scales_that_are_no_numbers(whole: Path, tmp_path: Path, name: str, part: str, value: float) -> None:
    folder = copy(whole, tmp_path / "m")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    start = 8 + size + json.loads(data[8 : 8 + size])[f"{name}.{part}"]["data_offsets"][0]
    if part == "w":
        data[start + 5] = 0x7F if np.isnan(value) else 0xFF
    else:
        raw = np.asarray(value, np.float16 if part == "panels" else np.float32).tobytes()
        data[start : start + len(raw)] = raw
    path.write_bytes(data)
    with pytest.raises(PronghornError, match="NaN"):
        read_all(folder)


def test_a_file_cut_off(whole: Path, tmp_path: Path) -> None:
    folder = copy(whole, tmp_path / "m")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(PronghornError, match="truncated"):
        read_all(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=4))
def test_any_bytes(whole: Path, tmp_path: Path, where: int, what: bytes) -> None:
    """A changed description reads as something, or is an error of ours."""
    folder = tmp_path / "m"
    if not folder.exists():
        copy(whole, folder)
    data = bytearray((whole / "packed.json").read_bytes())
    where %= len(data)
    data[where : where + len(what)] = what
    (folder / "packed.json").write_bytes(data)
    with suppress(PronghornError):
        read_all(folder)
