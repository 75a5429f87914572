"""A calibration table: what was found of a model, as JSON (`pronghorn calibrate`); here how much each head
retrieves, and what tables of every kind have in common.

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

VERSION = 1
BYTES_MOST = 16 << 20
SIZES = (("layer", 4096), ("head", 4096), ("channel", 1024))  # that a table has at most
NAME_MOST = 1024  # characters of a model's name

Scores = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class File:
    """Where a table stands, and its kind, after which the command that makes it is called."""

    path: str
    kind: str

    @property
    def make(self) -> str:
        return f"`pronghorn calibrate {self.kind} MODEL -o FILE`"

    def bad(self, why: str) -> MethodError:
        return MethodError(f"{self.path!r} is no calibration table: {why}; {self.make} makes one")

    def write(self, table: dict[str, Any]) -> None:
        """Raises `CheckpointError` where it cannot."""
        with replacing(Path(self.path)) as temporary:
            head = {"kind": f"pronghorn {self.kind}", "version": VERSION}
            temporary.write_text(json.dumps(head | table) + "\n")

    def read(self, names: Sequence[str], most: int = BYTES_MOST) -> dict[str, Any]:
        """What stands in it, of which model, fingerprint and tokens are checked. Raises `MethodError` for a
        file that cannot be read, that is none of this kind or lacks one of `names`."""
        data = self._bytes(most)
        try:
            found = json.loads(data.decode("utf-8"), parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise self.bad(f"it is not JSON ({str(error)[:80]})") from None
        if not isinstance(found, dict) or found.get("kind") != f"pronghorn {self.kind}":
            raise self.bad(f"it has no kind 'pronghorn {self.kind}'")
        if found.get("version") != VERSION or isinstance(found["version"], bool):
            raise self.bad(f"it is not of version {VERSION}, which this program reads")
        absent = [name for name in names if name not in found]
        if absent:
            raise self.bad(f"it has no {', '.join(absent)}")
        model, mark, tokens = found["model"], found["fingerprint"], found["tokens"]
        if not isinstance(model, str) or len(model) > NAME_MOST:
            raise self.bad("model is not a name")
        if not isinstance(mark, str) or len(mark) != 64 or set(mark) - set("0123456789abcdef"):
            raise self.bad("fingerprint is not 64 digits of base 16")
        if type(tokens) is not int or not 0 < tokens < 1 << 40:
            raise self.bad("tokens is not a number of tokens")
        return {name: found[name] for name in names}

    def numbers(self, name: str, of: Any, what: Sequence[tuple[str, int]], each: str = "table") -> Any:
        """Lists of numbers from 0 to 1 in lists, as tuples; those of one depth are as long. what: for each
        depth, of what there is one each, and how many at most. Raises `MethodError` for anything else."""
        if not what:
            if type(of) not in (int, float) or not 0 <= of <= 1:
                raise self.bad(f"{name} holds something that is not a number from 0 to 1")
            return float(of)
        (kind, most), *inner = what
        if not isinstance(of, list) or not 0 < len(of) <= most:
            raise self.bad(f"{name} is not a list of 1 to {most} {kind}s in each {each}")
        if inner and any(not isinstance(x, list) or len(x) != len(of[0]) for x in of):
            raise self.bad(f"{name} does not have as many {inner[0][0]}s in each {kind}")
        return tuple(self.numbers(name, x, inner, kind) for x in of)

    def _bytes(self, most: int) -> bytes:
        try:
            with open(self.path, "rb", opener=_without_waiting) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise self.bad("it is no file")
                data = file.read(most + 1)
        except (OSError, ValueError) as e:
            why = getattr(e, "strerror", None) or str(e)
            raise MethodError(
                f"cannot read the calibration table {self.path!r}: {why}; {self.make} makes one"
            ) from None
        if len(data) > most:
            raise self.bad(f"it is larger than {most >> 20} MiB")
        return data


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
    def shape(self) -> tuple[int, ...]:
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
        File(str(path), "heads").write(asdict(self))


def read(path: str) -> Table:
    """Raises `MethodError` for a file that cannot be read or is no table of heads."""
    file = File(path, "heads")
    found = file.read([f.name for f in fields(Table)])
    echo, induction = (file.numbers(name, found[name], SIZES[:2]) for name in ("echo", "induction"))
    if [len(x) for x in echo] != [len(x) for x in induction]:
        raise file.bad("echo and induction are not of the same heads")
    return Table(found["model"], found["fingerprint"], found["tokens"], echo, induction)


def _without_waiting(path: str, flags: int) -> int:
    """A pipe that nobody writes to must not hold us up."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")
