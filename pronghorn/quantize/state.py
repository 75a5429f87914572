"""What a run of `pronghorn quantize` leaves on the disk until it is through, so that it can be taken up.

A folder beside the output holds the finished stages: N.safetensors with their tensors, N.npy with the
residual stream after the last of them, and N.json, which is renamed into place when the others are on the
disk: a stage whose .json is there is whole, whatever ended the process. A folder of other arguments is
emptied.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pronghorn.errors import CheckpointError
from pronghorn.model.checkpoint import Entry
from pronghorn.model.hf import read_json, read_safetensors
from pronghorn.model.packed import LIMIT, joined
from pronghorn.quantize.job import Stage
from pronghorn.quantize.write import parts, write_tensors, write_text

PLAN = "plan.json"


class State:
    """folder: where stages are kept; made if it is not there. plan: what the run is, as JSON."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder = folder
        text = json.dumps(plan, sort_keys=True)
        try:
            same = (folder / PLAN).read_text(encoding="utf-8") == text
        except OSError:
            same = False
        if not same:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._replace(PLAN, lambda path: write_text(path, text))

    @property
    def n_done(self) -> int:
        """Stages that are whole, counted from the first."""
        n = 0
        while (self.folder / f"{n}.json").exists():
            n += 1
        return n

    def save(self, number: int, stage: Stage) -> None:
        """Raises `OSError`."""
        arrays, described = parts(stage.made)
        if arrays:
            self._replace(
                f"{number}.safetensors", lambda path: write_tensors(path, arrays, lambda done, total: None)
            )
        if stage.x.size:
            self._replace(f"{number}.npy", lambda path: _save(path, stage.x))
        about = {"tensors": described, "arrays": len(arrays), "notes": stage.notes}
        self._replace(f"{number}.json", lambda path: write_text(path, json.dumps(about)))
        (self.folder / f"{number - 1}.npy").unlink(missing_ok=True)

    def load(self, number: int) -> Stage:
        """A stage without its stream; its arrays are views of the file."""
        about = read_json(self.folder / f"{number}.json", LIMIT)
        entries: dict[str, Entry] = {}
        if about["arrays"]:
            path = self.folder / f"{number}.safetensors"
            entries = dict(read_safetensors(path))
        entries = joined(self.folder, about["tensors"], entries)
        made = {name: e.read() for name, e in entries.items()}
        return Stage(made, np.zeros((0, 0), np.float32), about["notes"])

    def stream(self, number: int) -> Any:
        """The residual stream after a stage. Raises `CheckpointError` when it is not there."""
        path = self.folder / f"{number}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot go on from {path} ({error}): delete {self.folder}") from None

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _replace(self, name: str, write: Any) -> None:
        temporary = self.folder / f".{name}.part"
        try:
            write(temporary)
            os.replace(temporary, self.folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _save(path: Path, x: Any) -> None:
    with open(path, "wb") as file:
        np.save(file, x, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
