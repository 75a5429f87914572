"""The calibration tables that methods of an engine go by, of any kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from hashlib import blake2b
from typing import Any

import numpy as np

from pronghorn.calibrate import channels, codebooks, table
from pronghorn.calibrate.table import File
from pronghorn.errors import MethodError

READ: dict[str, Callable[[str], Any]] = {
    "heads": table.read, "channels": channels.read, "codebooks": codebooks.read,
}  # fmt: skip


def opened(files: Sequence[tuple[str, str]], fingerprint: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Tables by path, of (path, kind); all of the model with this `fingerprint.of_model`. shape: its layers
    that run, KV heads and channels of a head. Raises `MethodError`."""
    out: dict[str, Any] = {}
    for path, kind in files:
        file, found = File(path, kind), READ[kind](path)
        if found.fingerprint != fingerprint:
            other = ", or name heads: heads=0+5+..." if kind == "heads" else ""
            raise MethodError(
                f"the calibration table {path} is of another model ({found.model!r}), or of this one with "
                f"other layers left out: make one for this model with {file.make}{other}"
            )
        if found.shape != shape[: len(found.shape)]:
            what = "layers and heads" if len(found.shape) == 2 else "layers, heads and channels"
            raise file.bad(f"it has {found.shape} {what}, the model {shape[: len(found.shape)]}")
        out[path] = found
    return out


def mark(tables: Mapping[str, Any]) -> str:
    """Of what stands in them, on which stored rows and their index depend; "" of none."""
    h = blake2b(digest_size=16)
    for path in sorted(tables):
        for f in fields(tables[path]):
            value = getattr(tables[path], f.name)
            h.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return h.hexdigest() if tables else ""
