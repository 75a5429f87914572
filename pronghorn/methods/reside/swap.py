"""Rows of preempted sequences leave memory and come back (FastSwitch, Shen et al., 2024, arXiv 2411.18424).

A scheduler decides who gives way; the engine then compares the time to write the rows and read them back, as
measured, with the time to run them again, as its cost model says, and takes what costs less. Copies are
incremental and written in the background (`kv.tiers.Swap`). Departures: no memory is set aside in runs for
large copies; pages of one copy lie side by side in a file instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pronghorn.errors import MethodError
from pronghorn.kv.tiers import Swap as Copies
from pronghorn.nulls import AllResident

if TYPE_CHECKING:
    from pronghorn.kv.store import Store


@dataclass(frozen=True)
class Swap(AllResident):
    folder: str = ""  # where copies go, on a fast disk; "": the host's memory, for KV that lies on a GPU

    swaps = True

    def tier(self, store: Store) -> Copies:
        try:
            return Copies(store, self.folder)
        except OSError as error:
            raise MethodError(
                f"swap: cannot write to {self.folder!r} ({error.strerror or error}): name another folder"
            ) from None
