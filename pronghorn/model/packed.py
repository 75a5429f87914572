"""Checkpoints whose matrices are packed already: a Hugging Face folder with one more file.

`packed.json` says which tensors of the .safetensors files are parts of a packed matrix, and what its codes
mean. Matrix NAME on a grid lies there as NAME.panels, exactly what kernels read (`ops.panels`), and
NAME.scale where one scale serves a row; a matrix of 8-bit floats as NAME.w and NAME.scale. Panels are handed
out as views of the mapped file, so nothing is packed again at load. All else is as in any folder.

Every size is checked against the safetensors header, which was checked against the file; nothing is allocated
by a number of this file alone. Scales are looked at when a matrix is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pronghorn.errors import CheckpointError
from pronghorn.model.checkpoint import Entry, TensorInfo
from pronghorn.model.names import shown
from pronghorn.ops.codes import Grid, is_order
from pronghorn.ops.panels import PANEL, factors, stride
from pronghorn.types import Packed

FILE = "packed.json"
VERSION = 1
LIMIT = 64 << 20  # bytes of the file
CODES, FLOATS = "codes", "float8"
MATRIX_MAX = 1 << 32  # of a side: keeps products of sizes small numbers


def describe(packed: Packed) -> dict[str, Any]:
    """What `packed.json` says of one matrix. Raises `ValueError` for a kind that has no place there."""
    if packed.kind not in (CODES, FLOATS):
        raise ValueError(f"a matrix of kind {packed.kind!r} is stored as an ordinary tensor")
    out: dict[str, Any] = {"kind": packed.kind, "shape": list(packed.shape)}
    if packed.grid is not None:
        out["grid"] = dataclasses.asdict(packed.grid)
    return out


def whole(described: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The content of `packed.json`. described: `describe` of each matrix by name."""
    return {"version": VERSION, "tensors": dict(described)}


# ------------------------------------------------------------------------------ reading


def join(folder: Path, entries: dict[str, Entry]) -> dict[str, Entry]:
    """Entries of a folder, each matrix of its `packed.json` put together from its parts; without such a
    file the entries themselves. Raises `CheckpointError`; reads no tensor data."""
    from pronghorn.model.hf import read_json

    path = folder / FILE
    if not path.exists():
        return entries
    content = read_json(path, LIMIT)
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is of version {shown(content.get('version'))}; this Pronghorn reads version {VERSION}: "
            "quantize the model again"
        )
    described = content.get("tensors")
    if not isinstance(described, dict):
        raise CheckpointError(f"{path} has no list of tensors")
    return joined(path, described, entries)


def joined(path: Path, described: Mapping[str, Any], entries: dict[str, Entry]) -> dict[str, Entry]:
    """As `join`, given what the file says."""
    out = dict(entries)
    for name, about in described.items():
        entry, parts = _matrix(f"{path}: tensor {shown(name)}", name, about, entries)
        if name in entries:
            raise CheckpointError(f"{path}: tensor {shown(name)} is there packed and as it was")
        for part in parts:
            del out[part]
        out[name] = entry
    return out


def _matrix(what: str, name: str, about: Any, entries: Mapping[str, Entry]) -> tuple[Entry, list[str]]:
    """One matrix, and the names of its parts."""
    if not isinstance(about, dict):
        raise CheckpointError(f"{what} has no description")
    kind, shape = about.get("kind"), about.get("shape")
    if kind not in (CODES, FLOATS):
        raise CheckpointError(f"{what} is of kind {shown(kind)}; known: {CODES}, {FLOATS}")
    if not isinstance(shape, list) or len(shape) != 2 or any(
        type(n) is not int or not 0 < n < MATRIX_MAX for n in shape
    ):  # fmt: skip
        raise CheckpointError(f"{what} has shape {shown(shape)}")
    n_out, n_in = shape
    grid = _grid(what, about.get("grid")) if kind == CODES else None
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    if grid is not None:
        n_panels = -(-n_out // PANEL)
        held = entries.get(f"{name}.panels")
        if held is not None and (held.info.shape[:1] != (n_panels,) or n_in > held.info.nbytes):
            raise CheckpointError(
                f"{what} of shape ({n_out}, {n_in}) cannot be in panels of shape {held.info.shape}: the two "
                "do not belong together"
            )
        wanted["panels"] = ("U8", (n_panels, stride(grid, n_in)) if held is not None else ())
    else:
        wanted["w"] = ("U8", (n_out, n_in))
    if grid is None or grid.group == 0:
        wanted["scale"] = ("F32", (n_out,))
    if grid is not None and f"{name}.order" in entries:
        wanted["order"] = ("I32", (n_in,))
    nbytes = 0
    for part, (dtype, size) in wanted.items():
        stored = entries.get(f"{name}.{part}")
        if stored is None:
            raise CheckpointError(f"{what}: its {part} are not in the .safetensors files")
        if (stored.info.dtype, stored.info.shape) != (dtype, size):
            raise CheckpointError(
                f"{what} of shape ({n_out}, {n_in}) needs {part} of {dtype} {size}, but the file has "
                f"{stored.info.dtype} {stored.info.shape}: the two do not belong together"
            )
        nbytes += stored.info.nbytes
    parts = {part: entries[f"{name}.{part}"].read for part in wanted}
    spelled = f"codes{grid.bits}" if grid is not None else "F8_E4M3"
    info = TensorInfo(name, (n_out, n_in), spelled, nbytes, small=True, ready=grid is not None)
    return Entry(info, _reader(what, kind, (n_out, n_in), grid, parts)), [f"{name}.{p}" for p in wanted]


def _grid(what: str, about: Any) -> Grid:
    fields = {f.name: f for f in dataclasses.fields(Grid)}
    if not isinstance(about, dict) or set(about) != set(fields):
        raise CheckpointError(f"{what}: its grid is {shown(about)}, not {', '.join(fields)}")
    kinds = {"bits": int, "group": int, "centred": bool, "table": list, "scale": str, "offset": str,
             "activations": int}  # fmt: skip
    if any(type(about[name]) is not kind for name, kind in kinds.items()) or any(
        type(t) is not int for t in about["table"]
    ):
        raise CheckpointError(f"{what}: its grid is {shown(about)}")
    try:
        return Grid(**{**about, "table": tuple(about["table"])})
    except ValueError as error:
        raise CheckpointError(f"{what}: {error}; the file may be of a newer Pronghorn") from None


def _reader(
    what: str, kind: str, shape: tuple[int, int], grid: Grid | None, parts: Mapping[str, Callable[[], Any]]
) -> Callable[[], Any]:
    checked = False

    def read() -> Packed:
        nonlocal checked
        packed = Packed(kind, shape, {part: get() for part, get in parts.items()}, grid)
        if not checked:  # once: a matrix is asked for more often
            _check_scales(what, packed)
            checked = True
        return packed

    return read


def _check_scales(what: str, packed: Packed) -> None:
    floats = factors(packed) if packed.kind == CODES and packed.grid and packed.grid.group else ()
    for a in (*floats, *([packed.fields["scale"]] if "scale" in packed.fields else [])):
        if not np.isfinite(a).all():
            n = a.size - int(np.isfinite(a).sum())
            raise CheckpointError(
                f"{what}: {n} of its scales are NaN or infinite; the file is damaged: quantize it again"
            )
    order = packed.fields.get("order")
    if order is not None and not is_order(np.asarray(order), packed.shape[1]):
        raise CheckpointError(
            f"{what}: its order of inputs does not name each of them once; the file is damaged: quantize it "
            "again"
        )
    if packed.kind == FLOATS and (np.asarray(packed.fields["w"]) & 0x7F == 0x7F).any():
        raise CheckpointError(f"{what} holds NaN; the file is damaged: quantize it again")
