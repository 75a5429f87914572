"""Calling the command line in this process, as a user's shell would see it."""

from __future__ import annotations

import io
import json
import shutil
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pronghorn.cli.main import main
from pronghorn.llm import BUNDLED

TINY = BUNDLED / "pronghorn-tiny"


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


class Caller:
    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *args: str, stdin: str | bytes = "") -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(list(args))
        out, err = self.capsys.readouterr()
        return Result(int(end.value.code), out, err)

    def refused(self, *args: str, stdin: str | bytes = "") -> str:
        """The one line that says why: exit status 2, nothing on stdout, no traceback."""
        result = self(*args, stdin=stdin)
        assert result.status == 2, result
        assert result.out == ""
        lines = result.err.splitlines()
        assert len(lines) == 1, result.err
        assert lines[0].startswith("pronghorn: ")
        assert "internal error" not in lines[0]
        return lines[0]


def copy_tiny(folder: Path) -> Path:
    """The bundled model, to be damaged."""
    target = folder / "copy"
    shutil.copytree(TINY, target)
    return target


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def fill_tensor(path: Path, name: str, value: bytes) -> None:
    """Overwrite the first bytes of a tensor in a safetensors file."""
    data = bytearray(path.read_bytes())
    (n,) = struct.unpack("<Q", data[:8])
    start = 8 + n + json.loads(data[8 : 8 + n])[name]["data_offsets"][0]
    data[start : start + len(value)] = value
    path.write_bytes(data)
