"""A calibration table: how much each head of a model retrieves, as JSON (`pronghorn calibrate heads`).

A table is for one model, which its fingerprint names. Nothing in the file is believed: its size is bounded,
and every field is checked before any is used.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.model.writing import replacing

KIND = "pronghorn heads"
VERSION = 1
BYTES_MOST = 16 << 20
LAYERS_MOST = HEADS_MOST = 4096
NAME_MOST = 1024  # characters of a model's name
MAKE = "`pronghorn calibrate heads MODEL -o FILE`"

Scores = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Table:
    """echo, induction: for each layer and KV head, from 0 to 1, the weight that a token's queries give to the
    tokens before it that are the same, and to those that follow them; of the query heads that share it, the
    largest. model: its name, for people; tokens: of the text that it was found with."""

    model: str
    fingerprint: str
    tokens: int
    echo: Scores
    induction: Scores

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and KV heads."""
        return len(self.echo), len(self.echo[0])

    def best(self, share: float) -> NDArray[np.bool_]:
        """(layers, KV heads): the `share` of heads that retrieve most; of fifteen, fourteen by induction and
        one of the others by echo. Ties go to the earlier head."""
        echo, induction = np.array(self.echo).reshape(-1), np.array(self.induction).reshape(-1)
        n = int(np.ceil(share * len(echo) - 1e-9))
        most = int(np.ceil(14 * n / 15))
        out = np.zeros(len(echo), bool)
        out[np.argsort(-induction, kind="stable")[:most]] = True
        echo[out] = -1
        out[np.argsort(-echo, kind="stable")[: n - most]] = True
        return out.reshape(self.shape)

    def write(self, path: Path) -> None:
        """Raises `CheckpointError` where it cannot."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"kind": KIND, "version": VERSION, **asdict(self)}) + "\n")


def opened(paths: Sequence[str], fingerprint: str, shape: tuple[int, int]) -> dict[str, Table]:
    """Tables by path, all of the model with this `fingerprint.of_model`; shape: its layers that run, and
    KV heads. Raises `MethodError`."""
    out = {path: read(path) for path in paths}
    for path, table in out.items():
        if table.fingerprint != fingerprint:
            raise MethodError(
                f"the calibration table {path} is of another model ({table.model!r}), or of this one with "
                f"other layers left out: make one for this model with {MAKE}, or name heads: heads=0+5+..."
            )
        if table.shape != shape:
            raise _bad(path, f"it has {table.shape} layers and heads, the model {shape}")
    return out


def read(path: str) -> Table:
    """Raises `MethodError` for a file that cannot be read or is no table."""
    data = _bytes(path)
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"it is not JSON ({str(error)[:80]})") from None
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise _bad(path, f"it has no kind {KIND!r}")
    if found.get("version") != VERSION or isinstance(found["version"], bool):
        raise _bad(path, f"it is not of version {VERSION}, which this program reads")
    absent = [f.name for f in fields(Table) if f.name not in found]
    if absent:
        raise _bad(path, f"it has no {', '.join(absent)}")
    model, mark, tokens = found["model"], found["fingerprint"], found["tokens"]
    if not isinstance(model, str) or len(model) > NAME_MOST:
        raise _bad(path, "model is not a name")
    if not isinstance(mark, str) or len(mark) != 64 or set(mark) - set("0123456789abcdef"):
        raise _bad(path, "fingerprint is not 64 digits of base 16")
    if type(tokens) is not int or not 0 < tokens < 1 << 40:
        raise _bad(path, "tokens is not a number of tokens")
    echo, induction = (_scores(path, name, found[name]) for name in ("echo", "induction"))
    if [len(x) for x in echo] != [len(x) for x in induction]:
        raise _bad(path, "echo and induction are not of the same heads")
    return Table(model, mark, tokens, echo, induction)


def _scores(path: str, name: str, rows: Any) -> Scores:
    if not isinstance(rows, list) or not 0 < len(rows) <= LAYERS_MOST:
        raise _bad(path, f"{name} is not a list of 1 to {LAYERS_MOST} layers")
    for row in rows:
        if not isinstance(row, list) or not 0 < len(row) <= HEADS_MOST or len(row) != len(rows[0]):
            raise _bad(path, f"{name} does not have as many heads, 1 to {HEADS_MOST}, in each layer")
        if any(type(x) not in (int, float) or not 0 <= x <= 1 for x in row):
            raise _bad(path, f"{name} holds something that is not a number from 0 to 1")
    return tuple(tuple(map(float, row)) for row in rows)


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _bad(path, "it is no file")
            data = file.read(BYTES_MOST + 1)
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or str(e)
        raise MethodError(f"cannot read the calibration table {path!r}: {why}; {MAKE} makes one") from None
    if len(data) > BYTES_MOST:
        raise _bad(path, f"it is larger than {BYTES_MOST >> 20} MiB")
    return data


def _without_waiting(path: str, flags: int) -> int:
    """A pipe that nobody writes to must not hold us up."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _bad(path: str, why: str) -> MethodError:
    return MethodError(f"{path!r} is no calibration table: {why}; {MAKE} makes one")
